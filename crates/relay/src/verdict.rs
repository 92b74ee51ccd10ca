//! What an answer to a message means, and how long to wait before the next try. Decides for one recipient and one
//! attempt; whether many refusals in a row mean a broken primary is not judged here.

use crate::jitter;
use restante_envelope::{Reply, ReplyClass, Timestamp, TransactionId};
use restante_ledger::{Cause, Outcome};
use std::time::Duration;

/// The wait after the first refusal. Postfix waits 300 s (`minimal_backoff_time`) because it serves the whole world;
/// we serve one primary that has just come back, whose greylisting or start-up trouble passes in a minute or two.
const BACKOFF_FIRST_SECS: u64 = 60;
/// The longest wait. Postfix: 4000 s (`maximal_backoff_time`). An hour is what people expect when they read "retry".
const BACKOFF_MAX_SECS: u64 = 3_600;
/// So that messages deferred together do not come back together.
const BACKOFF_JITTER_PERCENT: u64 = 10;
/// RFC 5321 section 3.8: the server is closing the connection.
const CLOSING: u16 = 421;

/// What was heard after a message was offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A reply that settles this recipient: to RCPT, to DATA, or to the final dot if it is positive.
    Replied(Reply),
    /// The reply to MAIL, not positive.
    ToMail(Reply),
    /// The reply to the final dot, not positive: the server had taken the recipient.
    ToContent(Reply),
    /// The connection broke before the final dot was sent.
    Lost {
        /// How.
        why: String,
    },
    /// The connection broke after the final dot, before the reply.
    InDoubt {
        /// How.
        why: String,
    },
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Write this down as the attempt's outcome.
    Record(Outcome),
    /// The connection ended before the final dot: no message's fault, nothing is written down. Report it with
    /// [`Relay::attempt_failed`](crate::Relay::attempt_failed).
    RetryUnrecorded,
    /// The server is busy: no message's fault, nothing is written down. Reported as
    /// [`ConnectionTrouble::PushedBack`](crate::ConnectionTrouble::PushedBack).
    SlowDown,
}

/// Whether a refusal of MAIL for now is about the server and not about the sender (RFC 3463: subjects 3 system and 4 network,
/// and 7 policy, where the limits of a client are told), or says nothing of it.
fn is_about_the_server(reply: &Reply) -> bool {
    reply.class() == ReplyClass::Transient
        && reply.enhanced().is_none_or(|status| matches!(status.subject, 0 | 3 | 4 | 7))
}

/// Judges what was heard about a recipient with `attempts_so_far` recorded attempts before this one.
///
/// A permanent refusal is written down as what it is, and not believed here: nothing is bounced.
pub fn judge(heard: &Heard, attempts_so_far: u16, id: TransactionId, seed: u64, now: Timestamp) -> Verdict {
    let next_at = now + backoff(attempts_so_far.saturating_add(1), id, seed);
    let outcome = match heard {
        Heard::Lost { .. } => return Verdict::RetryUnrecorded,
        Heard::Replied(reply) | Heard::ToMail(reply) | Heard::ToContent(reply) if reply.code() == CLOSING => {
            return Verdict::SlowDown;
        }
        Heard::ToMail(reply) if is_about_the_server(reply) => return Verdict::SlowDown,
        // The same growing wait as after a refusal: a primary that always times out here may take a copy each time
        // (RFC 1047), and must not be sent one a minute for ever.
        Heard::InDoubt { why } => Outcome::Deferred { cause: Cause::InDoubt(why.clone()), next_at },
        Heard::Replied(reply) | Heard::ToMail(reply) => said(reply, Cause::Reply(reply.clone()), next_at),
        Heard::ToContent(reply) => said(reply, Cause::Content(reply.clone()), next_at),
    };
    Verdict::Record(outcome)
}

fn said(reply: &Reply, cause: Cause, next_at: Timestamp) -> Outcome {
    match reply.class() {
        ReplyClass::Positive => Outcome::Sent(reply.clone()),
        ReplyClass::Permanent => Outcome::Held(cause),
        // 3yz is no final answer: the server is confused, and may not be the next time.
        ReplyClass::Transient | ReplyClass::Intermediate => Outcome::Deferred { cause, next_at },
    }
}

/// How long to wait after attempt number `attempt` (from 1): a minute, doubling up to an hour, plus or minus 10 %.
pub fn backoff(attempt: u16, id: TransactionId, seed: u64) -> Duration {
    let doublings = u32::from(attempt.saturating_sub(1)).min(u64::BITS - 1);
    let secs = BACKOFF_FIRST_SECS.saturating_mul(1 << doublings).min(BACKOFF_MAX_SECS);
    let draw = jitter::draw(seed, id.to_bits(), u64::from(attempt));
    jitter::spread(Duration::from_secs(secs), BACKOFF_JITTER_PERCENT, draw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_MS: u64 = 1_000_000;

    fn judged(heard: &Heard) -> Verdict {
        judge(heard, 0, TransactionId::from_bits(5), 9, Timestamp::from_unix_ms(NOW_MS))
    }

    fn replied(code: u16) -> Heard {
        Heard::Replied(Reply::new(code, None, "text"))
    }

    #[test]
    fn only_a_positive_reply_settles() {
        for code in [250, 251, 200] {
            assert!(matches!(judged(&replied(code)), Verdict::Record(Outcome::Sent(reply)) if reply.code() == code));
        }
    }

    #[test]
    fn a_temporary_refusal_or_nonsense_is_tried_again_in_about_a_minute() {
        for heard in [replied(450), replied(499), replied(354), Heard::InDoubt { why: "reset".into() }] {
            let Verdict::Record(Outcome::Deferred { next_at, .. }) = judged(&heard) else { panic!("{heard:?}") };
            assert!((NOW_MS + 54_000..=NOW_MS + 66_000).contains(&next_at.unix_ms()), "{next_at}");
        }
    }

    #[test]
    fn a_permanent_refusal_is_never_tried_again_by_itself() {
        for code in [550, 554, 599] {
            assert!(matches!(judged(&replied(code)), Verdict::Record(Outcome::Held(Cause::Reply(_)))));
        }
    }

    #[test]
    fn a_broken_connection_is_no_messages_fault() {
        assert_eq!(judged(&Heard::Lost { why: "reset".into() }), Verdict::RetryUnrecorded);
    }

    #[test]
    fn a_server_that_is_busy_is_no_messages_fault_and_a_sender_it_does_not_know_is() {
        let to_mail = |subject: Option<u16>| {
            let enhanced = subject.map(|subject| restante_envelope::EnhancedStatus::new(4, subject, 1));
            judged(&Heard::ToMail(Reply::new(450, enhanced, "later")))
        };
        assert_eq!(judged(&replied(421)), Verdict::SlowDown);
        for subject in [None, Some(3), Some(4), Some(7)] {
            assert_eq!(to_mail(subject), Verdict::SlowDown, "{subject:?}");
        }
        assert!(matches!(to_mail(Some(1)), Verdict::Record(Outcome::Deferred { .. })));
        let refused = judged(&Heard::ToContent(Reply::new(554, None, "spam")));
        assert!(matches!(refused, Verdict::Record(Outcome::Held(Cause::Content(_)))));
    }

    #[test]
    fn an_answer_lost_after_the_final_dot_is_recorded_as_in_doubt() {
        let verdict = judged(&Heard::InDoubt { why: "timeout".into() });
        assert!(
            matches!(verdict, Verdict::Record(Outcome::Deferred { cause: Cause::InDoubt(why), .. }) if why == "timeout")
        );
    }

    proptest! {
        #[test]
        fn the_wait_is_never_zero_and_never_over_an_hour_and_a_bit(attempt: u16, id: u128, seed: u64) {
            let id = TransactionId::from_bits(id);
            let wait = backoff(attempt, id, seed).as_secs_f64();
            prop_assert!((54.0..=3_960.0).contains(&wait), "{wait}");
            let next = backoff(attempt.saturating_add(1), id, seed).as_secs_f64();
            prop_assert!(next >= wait / 1.1 * 0.9, "{wait} then {next}");
        }
    }
}
