//! What the DNS said last, and for how long that is gone by.

use super::*;

fn question(n: usize) -> Question {
    Question::Mx(format!("{n}.test"))
}

fn answer() -> Answer {
    Answer::Mx(vec![Mx { preference: 10, exchange: "mail.test".to_owned() }])
}

#[test]
fn the_last_answer_helps_while_the_dns_is_down_and_not_for_ever() {
    let (mut last, start) = (LastGood::default(), Instant::now());
    assert_eq!(last.instead_of(&question(1), start), None);
    last.learn(question(1), answer(), start);
    // As long as it answers, it is asked.
    assert_eq!(last.instead_of_asking(&question(1), start), None);
    let outage = start + Duration::from_secs(86_400);
    assert_eq!(last.instead_of(&question(1), outage), Some(answer()));
    // Not with every connection, but soon again.
    assert_eq!(last.instead_of_asking(&question(1), outage + ASK_AGAIN / 2), Some(answer()));
    assert_eq!(last.instead_of_asking(&question(1), outage + ASK_AGAIN), None);
    assert_eq!(last.instead_of(&question(1), start + LAST_GOOD_MAX), None);
}

#[test]
fn that_there_was_nothing_is_no_answer_to_go_by() {
    let (mut last, now) = (LastGood::default(), Instant::now());
    for nothing in [Answer::NoSuchName, Answer::Addresses(Vec::new(), None)] {
        last.learn(question(1), nothing, now);
        assert_eq!(last.instead_of(&question(1), now), None);
    }
    // But no MX record is one: the domain is its own host.
    last.learn(question(1), Answer::Mx(Vec::new()), now);
    assert_eq!(last.instead_of(&question(1), now), Some(Answer::Mx(Vec::new())));
}

#[test]
fn what_is_remembered_is_bounded_and_the_oldest_goes() {
    let (mut last, start) = (LastGood::default(), Instant::now());
    for n in 0..=LAST_GOOD_COUNT_MAX {
        last.learn(question(n), answer(), start + Duration::from_millis(n as u64));
    }
    assert_eq!(last.0.len(), LAST_GOOD_COUNT_MAX);
    let now = start + Duration::from_secs(60);
    assert_eq!((last.instead_of(&question(0), now), last.instead_of(&question(1), now)), (None, Some(answer())));
}
