//! Reads the log on two threads: each takes a piece, and what they found comes out in the order of the log.

use super::tail::{Piece, Tail};
use std::io;
use std::ops::ControlFlow;

/// What one piece gave, and what is wrong with the piece.
type Found<T> = (T, Option<String>);

/// Lets `work` look at every piece there is, and `each` have what it found, in order, until that says that it is enough.
/// What is wrong with a file is given to `damaged`; the rest of the log is read all the same.
pub(super) fn scan<T: Send>(
    tail: &mut Tail,
    work: impl Fn(&[u8]) -> T + Sync,
    mut each: impl FnMut(T) -> io::Result<ControlFlow<()>>,
    mut damaged: impl FnMut(&str),
) -> io::Result<()> {
    let look = |piece: Piece| -> Found<T> {
        let (text, damage) = piece.text();
        (work(&text), damage)
    };
    loop {
        let first = tail.next()?.or_else(|| tail.finish());
        let Some(first) = first else { return Ok(()) };
        let found = match tail.next()? {
            None => [Some(look(first)), None],
            Some(second) => std::thread::scope(|scope| {
                let other = scope.spawn(|| look(second));
                let first = look(first);
                let second =
                    other.join().map_err(|_panic| io::Error::other("a search thread ended by a defect of ours"));
                second.map(|second| [Some(first), Some(second)])
            })?,
        };
        tail.damage().iter().for_each(|what| damaged(what));
        for (found, damage) in found.into_iter().flatten() {
            damage.iter().for_each(|what| damaged(what));
            if each(found)?.is_break() {
                return Ok(());
            }
        }
    }
}
