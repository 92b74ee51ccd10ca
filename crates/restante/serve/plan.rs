//! The token of a plan: what `queue bounce` or `queue remove` would change, as a word that the operator gives back to have it
//! done. Decides whether that is still what would be changed, and says what is not; changes nothing itself.
//!
//! Two designs were weighed. The daemon could keep each plan under a number: it could name each member that changed, but a
//! restart forgets them, they take memory as long as somebody may come back, and what is kept grows old. Or the token itself
//! holds a hash of the set, which is computed anew and compared: nothing is kept. The second; so that it can say what has
//! changed, the token also holds how many messages were meant, the newest there was, and a hash of which, apart from how they
//! stand. The selectors are not in it: what is done is what was shown, whatever words lead to the same set, and `--since 90m`
//! is another instant each time.

use super::choose::{Choice, Chosen};
use restante_envelope::TransactionId;
use restante_ledger::Action;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::str::FromStr;

/// New arrivals that a refusal names; the rest are counted.
const NAMED_MAX: usize = 3;

/// A plan as a word: `remove-17-01JD9QK3T2E8V5W6X7Y8Z9ABCD-9f3a7c21-d0e4b8a65c21f07e`. The hashes are the standard library's:
/// another release of ours may have others, and then asks for a new plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    action: Action,
    messages: u64,
    /// The newest message when the plan was made: what is newer came since.
    newest: TransactionId,
    /// A hash of the messages and recipients.
    which: u32,
    /// A hash of them and of how they stand.
    how: u64,
}

/// It is not what a plan ends with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoToken;

impl fmt::Display for NoToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("that is no token of a plan: run the command without --yes, and copy the one it prints")
    }
}

impl std::error::Error for NoToken {}

/// The actions that need a plan, as the token names them.
fn word(action: Action) -> Option<&'static str> {
    match action {
        Action::Bounce => Some("bounce"),
        Action::Remove => Some("remove"),
        Action::Hold | Action::Release | Action::Settle | Action::Expire | Action::Undo => None,
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = word(self.action).unwrap_or_default();
        write!(f, "{word}-{}-{}-{:08x}-{:016x}", self.messages, self.newest, self.which, self.how)
    }
}

impl FromStr for Token {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<Self, NoToken> {
        let read = || {
            let mut parts = text.split('-');
            let action = match parts.next()? {
                "bounce" => Action::Bounce,
                "remove" => Action::Remove,
                _ => return None,
            };
            let token = Self {
                action,
                messages: parts.next()?.parse().ok()?,
                newest: parts.next()?.parse().ok()?,
                which: u32::from_str_radix(parts.next()?, 16).ok()?,
                how: u64::from_str_radix(parts.next()?, 16).ok()?,
            };
            // One way to write it, so that nothing that was not printed is taken.
            (token.to_string() == text).then_some(token)
        };
        read().ok_or(NoToken)
    }
}

impl Token {
    /// Of a plan for all that was chosen.
    pub(crate) fn of(action: Action, choice: &Choice) -> Self {
        Self::of_some(action, &choice.members, choice.newest.unwrap_or(TransactionId::from_bits(0)))
    }

    fn of_some(action: Action, members: &[Chosen], newest: TransactionId) -> Self {
        let (mut which, mut how) = (DefaultHasher::new(), DefaultHasher::new());
        for member in members {
            (member.id.to_bits(), &member.recipients).hash(&mut which);
            (member.id.to_bits(), member.standing).hash(&mut how);
        }
        let which = u32::try_from(which.finish() >> 32).unwrap_or(u32::MAX);
        Self { action, messages: members.len() as u64, newest, which, how: how.finish() }
    }

    /// What it is a plan for.
    pub(crate) fn action(&self) -> Action {
        self.action
    }

    /// Whether what was planned is what is chosen now; else what has changed.
    pub(crate) fn check(&self, now: &Choice) -> Result<(), String> {
        let newer = now.members.partition_point(|member| member.id <= self.newest);
        let (before, since) = now.members.split_at(newer);
        let current = Self::of_some(self.action, before, self.newest);
        if current == *self && since.is_empty() {
            return Ok(());
        }
        let mut changes = Vec::new();
        if current.messages < self.messages {
            let gone = self.messages - current.messages;
            changes.push(format!(
                "{gone} of {} would not be changed any more: delivered, settled or otherwise in another state",
                self.messages
            ));
        } else if current.messages > self.messages {
            changes.push(format!(
                "{} that were there before, and not in the plan, are selected now",
                current.messages - self.messages
            ));
        } else if current.which != self.which {
            changes.push("other messages are selected, or other recipients of them".to_owned());
        } else if current.how != self.how {
            changes.push("some of them stand otherwise now: they were tried, held or released".to_owned());
        }
        if !since.is_empty() {
            let named: Vec<_> = since.iter().take(NAMED_MAX).map(|member| member.id.to_string()).collect();
            let more = if since.len() > NAMED_MAX { ", ..." } else { "" };
            changes.push(format!("{} arrived since ({}{more})", since.len(), named.join(", ")));
        }
        Err(changes.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use restante_ledger::Position;

    fn member(n: u128, standing: u64) -> Chosen {
        let position = Position { segment: 1, offset: 4096 };
        Chosen { id: TransactionId::from_bits(n), position, content_len: 10, recipients: vec![0], standing }
    }

    fn choice(members: &[(u128, u64)], newest: u128) -> Choice {
        let mut members: Vec<_> = members.iter().map(|(n, standing)| member(*n, *standing)).collect();
        members.sort_by_key(|member| member.id);
        members.dedup_by_key(|member| member.id);
        let newest = Some(TransactionId::from_bits(newest));
        Choice { members, newest, active: 0, passed_over: Vec::new() }
    }

    #[test]
    fn a_refusal_says_what_has_changed() {
        let token = Token::of(Action::Remove, &choice(&[(1, 0), (2, 0), (3, 0)], 5));
        for (now, said) in [
            (&[(1, 0), (2, 0)][..], "1 of 3 would not be changed any more"),
            (&[(1, 0), (2, 0), (3, 0), (4, 0)], "1 that were there before, and not in the plan"),
            (&[(1, 0), (2, 0), (4, 0)], "other messages are selected"),
            (&[(1, 0), (2, 9), (3, 0)], "some of them stand otherwise"),
            (&[(1, 0), (2, 0), (3, 0), (6, 0)], "1 arrived since (00000000000000000000000006)"),
            (&[(2, 0), (6, 0), (7, 0), (8, 0), (9, 0)], "2 of 3 would not be changed any more: delivered"),
            (&[(2, 0), (6, 0), (7, 0), (8, 0), (9, 0)], "; 4 arrived since (00000000000000000000000006, "),
        ] {
            let why = token.check(&choice(now, 9)).unwrap_err();
            assert!(why.contains(said), "{said}\n{why}");
        }
        // Mail that no selector takes may come and go.
        assert_eq!(token.check(&choice(&[(1, 0), (2, 0), (3, 0)], 99)), Ok(()));
    }

    #[test]
    fn the_same_set_is_another_plan_for_another_action() {
        let set = choice(&[(1, 0)], 5);
        assert_ne!(Token::of(Action::Remove, &set).to_string(), Token::of(Action::Bounce, &set).to_string());
    }

    proptest! {
        #[test]
        fn a_token_is_read_as_it_was_printed_and_no_other_text_is_one(
            members in proptest::collection::vec((1u128..1_000, 0u64..3), 0..20), newest: u128, cut in 0usize..60, odd: char, any: String,
        ) {
            for action in [Action::Bounce, Action::Remove] {
                let token = Token::of(action, &choice(&members, newest));
                let text = token.to_string();
                prop_assert_eq!(text.parse(), Ok(token));
                // Cut short, or with a character more or another: no token, or another one.
                let cut = cut.min(text.len());
                prop_assert!(text[..cut].parse::<Token>().ok().is_none_or(|read| read != token || cut == text.len()));
                let changed = format!("{}{odd}{}", &text[..cut], text.get(cut + 1..).unwrap_or_default());
                prop_assert!(changed == text || changed.parse::<Token>().ok() != Some(token));
            }
            prop_assert_eq!(any.parse::<Token>(), Err(NoToken));
        }

        #[test]
        fn any_change_of_the_set_and_only_that_is_noticed(
            before in proptest::collection::vec((1u128..12, 0u64..3), 0..12),
            after in proptest::collection::vec((1u128..16, 0u64..3), 0..12),
            newest in 12u128..14,
        ) {
            let token = Token::of(Action::Remove, &choice(&before, newest));
            let key = |members: &[(u128, u64)]| {
                choice(members, newest).members.iter().map(|m| (m.id, m.standing)).collect::<Vec<_>>()
            };
            for now in [&before, &after] {
                let checked = token.check(&choice(now, 16));
                prop_assert_eq!(checked.is_ok(), key(&before) == key(now), "{:?}", &checked);
                prop_assert!(checked.is_ok() || !checked.unwrap_err().is_empty());
            }
        }
    }
}
