//! A sorted map for a backlog: small, and in order of acceptance. Knows nothing of what it holds.
//!
//! A B-tree's nodes stay half empty when keys come in order, as identifiers do, and that doubles what a million messages
//! cost. Here they stand in full chunks, with the identifiers apart from the values: a search reads nothing else, and no
//! space is lost to alignment. Memory is given back as entries go, wherever they go from.

use restante_envelope::TransactionId;
use std::collections::VecDeque;

/// Entries in a chunk: enough that what a chunk itself costs (about 150 bytes) does not count, few enough that an entry
/// is removed from the middle by moving 2 KiB.
const CHUNK_LEN_MAX: usize = 128;
/// Entries that room is kept for: a queue that is empty most of the time, with a message now and then, allocates nothing.
const ROOM_KEPT: usize = 4;

/// A map from identifiers, sorted by them. A search halves, and so takes a time logarithmic in the number of entries.
/// Entries come and go at either end in constant time. One that comes or goes anywhere else moves a part of its chunk;
/// one in 64 of those at the most makes or ends a chunk, and moves a part of the list of chunks: 0.6 bytes for each entry.
#[derive(Debug, Clone)]
pub struct IdMap<V> {
    /// None is empty, unless it is the only one. Each has an identifier not larger than its first, and larger than any in
    /// front of it.
    chunks: Sorted<Sorted<V>>,
    len: usize,
}

/// `values` are in the order of `ids`.
#[derive(Debug, Clone)]
struct Sorted<V> {
    ids: VecDeque<TransactionId>,
    values: VecDeque<V>,
}

impl<V> Default for IdMap<V> {
    fn default() -> Self {
        Self { chunks: Sorted::default(), len: 0 }
    }
}

impl<V> Default for Sorted<V> {
    fn default() -> Self {
        Self { ids: VecDeque::new(), values: VecDeque::new() }
    }
}

impl<V> Sorted<V> {
    fn insert(&mut self, at: usize, id: TransactionId, value: V) {
        self.ids.insert(at, id);
        self.values.insert(at, value);
    }

    fn remove(&mut self, at: usize) -> Option<(TransactionId, V)> {
        let removed = self.ids.remove(at).zip(self.values.remove(at));
        self.shrink();
        removed
    }

    fn split_off(&mut self, at: usize) -> Self {
        let rest = Self { ids: self.ids.split_off(at), values: self.values.split_off(at) };
        self.shrink();
        rest
    }

    /// So that few entries in many chunks hold no more memory than a multiple of their own.
    fn shrink(&mut self) {
        let len = self.ids.len();
        if len * 4 <= self.ids.capacity() && self.ids.capacity() > ROOM_KEPT {
            self.ids.shrink_to(ROOM_KEPT.max(len * 2));
            self.values.shrink_to(ROOM_KEPT.max(len * 2));
        }
    }
}

impl<V> IdMap<V> {
    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry with the smallest identifier.
    pub fn first(&self) -> Option<(TransactionId, &V)> {
        let chunk = self.chunks.values.front()?;
        Some((*chunk.ids.front()?, chunk.values.front()?))
    }

    /// The chunk that has `id`, if one has.
    fn chunk_of(&self, id: TransactionId) -> Option<usize> {
        self.chunks.ids.partition_point(|first| *first <= id).checked_sub(1)
    }

    /// Whether `id` has an entry.
    pub fn contains(&self, id: TransactionId) -> bool {
        self.get(id).is_some()
    }

    /// The value of `id`.
    pub fn get(&self, id: TransactionId) -> Option<&V> {
        let chunk = self.chunks.values.get(self.chunk_of(id)?)?;
        chunk.values.get(chunk.ids.binary_search(&id).ok()?)
    }

    /// The value of `id`, to be changed.
    pub fn get_mut(&mut self, id: TransactionId) -> Option<&mut V> {
        let number = self.chunk_of(id)?;
        let chunk = self.chunks.values.get_mut(number)?;
        chunk.values.get_mut(chunk.ids.binary_search(&id).ok()?)
    }

    /// Gives `id` a value; returns the one it had.
    pub fn insert(&mut self, id: TransactionId, value: V) -> Option<V> {
        let number = self.chunk_of(id).unwrap_or(0);
        let Some(chunk) = self.chunks.values.get_mut(number) else {
            self.insert_chunk(0, id, value);
            return None;
        };
        let at = match chunk.ids.binary_search(&id) {
            Ok(at) => return chunk.values.get_mut(at).map(|old| std::mem::replace(old, value)),
            Err(at) => at,
        };
        if chunk.ids.len() < CHUNK_LEN_MAX {
            chunk.insert(at, id, value);
            self.len += 1;
            // It may be the smallest of all.
            if let Some(first) = self.chunks.ids.get_mut(number) {
                *first = id.min(*first);
            }
            return None;
        }
        // A full chunk stays full if the new entry comes behind it, as nearly every one does.
        if at == CHUNK_LEN_MAX {
            self.insert_chunk(number + 1, id, value);
            return None;
        }
        let rest = chunk.split_off(CHUNK_LEN_MAX / 2);
        if let Some(first) = rest.ids.front().copied() {
            self.chunks.insert(number + 1, first, rest);
        }
        // There is room now.
        self.insert(id, value)
    }

    /// A chunk of one, as number `number`.
    fn insert_chunk(&mut self, number: usize, id: TransactionId, value: V) {
        let mut chunk = Sorted::default();
        chunk.insert(0, id, value);
        self.chunks.insert(number, id, chunk);
        self.len += 1;
    }

    /// Takes `id` out; returns its value.
    pub fn remove(&mut self, id: TransactionId) -> Option<V> {
        let number = self.chunk_of(id)?;
        let at = self.chunks.values.get(number)?.ids.binary_search(&id).ok()?;
        self.remove_at(number, at).map(|(_, value)| value)
    }

    /// Takes out the entry with the smallest identifier.
    pub fn pop_first(&mut self) -> Option<(TransactionId, V)> {
        self.remove_at(0, 0)
    }

    fn remove_at(&mut self, number: usize, at: usize) -> Option<(TransactionId, V)> {
        let chunk = self.chunks.values.get_mut(number)?;
        let removed = chunk.remove(at)?;
        if chunk.ids.is_empty() && self.chunks.ids.len() > 1 {
            self.chunks.remove(number);
        }
        self.len -= 1;
        Some(removed)
    }

    /// All entries, sorted.
    pub fn iter(&self) -> impl Iterator<Item = (TransactionId, &V)> {
        self.chunks.values.iter().flat_map(|chunk| chunk.ids.iter().copied().zip(&chunk.values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn id(n: u128) -> TransactionId {
        TransactionId::from_bits(n)
    }

    impl<V> IdMap<V> {
        /// Chunks are in order, and none is empty or too large; returns the entries there is room for.
        fn room(&self) -> usize {
            if self.is_empty() {
                assert!(self.iter().next().is_none() && self.chunks.ids.len() <= 1);
                return self.chunks.values.iter().map(|chunk| chunk.ids.capacity()).sum();
            }
            let bounds: Vec<_> = self
                .chunks
                .ids
                .iter()
                .zip(&self.chunks.values)
                .map(|(key, c)| [*key, *c.ids.front().unwrap(), *c.ids.back().unwrap()])
                .collect();
            assert!(bounds.concat().is_sorted());
            assert!(bounds.windows(2).all(|pair| pair[0][2] < pair[1][0]));
            for chunk in &self.chunks.values {
                assert!(chunk.ids.len() <= CHUNK_LEN_MAX && chunk.ids.len() == chunk.values.len());
                assert!(chunk.ids.iter().zip(chunk.ids.iter().skip(1)).all(|(a, b)| a < b));
            }
            assert_eq!(self.iter().count(), self.len());
            self.chunks.values.iter().map(|chunk| chunk.ids.capacity()).sum()
        }
    }

    #[test]
    fn a_backlog_in_order_leaves_no_room_unused() {
        let mut map = IdMap::default();
        for n in 0..128 * 50 {
            map.insert(id(n), ());
        }
        assert_eq!(map.room(), map.len());
    }

    #[test]
    fn a_few_messages_that_stay_do_not_keep_the_memory_of_those_that_went() {
        let mut map = IdMap::default();
        for n in 0..128 * 50 {
            map.insert(id(n), n);
        }
        for n in (0..128 * 50).filter(|n| n % 100 != 7) {
            assert_eq!(map.remove(id(n)), Some(n));
        }
        assert_eq!(map.len(), 64);
        assert!(map.room() <= 4 * map.len(), "{}", map.room());
        while map.pop_first().is_some() {}
        assert!(map.room() <= ROOM_KEPT && map.chunks.ids.capacity() <= ROOM_KEPT);
    }

    proptest! {
        /// Long runs in order, as mail comes, and single steps anywhere.
        #[test]
        fn it_is_a_b_tree_map_but_for_its_size(
            steps in proptest::collection::vec((0u8..8, 0u128..600, 1u128..300), 0..40),
        ) {
            let (mut map, mut known) = (IdMap::default(), BTreeMap::new());
            for (n, (kind, from, len)) in steps.into_iter().enumerate() {
                for who in (from..from + len).map(id) {
                    match kind {
                        0 | 1 => prop_assert_eq!(map.insert(who, n), known.insert(who, n)),
                        2 => prop_assert_eq!(map.remove(who), known.remove(&who)),
                        3 => prop_assert_eq!(map.pop_first(), known.pop_first()),
                        4 => prop_assert_eq!(map.get(who), known.get(&who)),
                        5 => prop_assert_eq!(map.get_mut(who), known.get_mut(&who)),
                        // Backwards, one by one.
                        6 => prop_assert_eq!(map.insert(id(from + len - who.to_bits()), n), known.insert(id(from + len - who.to_bits()), n)),
                        _ => prop_assert_eq!(map.contains(who), known.contains_key(&who)),
                    }
                }
                map.room();
                prop_assert_eq!(map.first(), known.first_key_value().map(|(id, n)| (*id, n)));
                prop_assert!(map.iter().eq(known.iter().map(|(id, n)| (*id, n))));
            }
        }
    }
}
