//! The histories that every build plays, and the defects that the rules must notice.

use super::*;
use std::collections::BTreeMap;

/// Long histories. Half a minute of one processor; `cargo xtask sim --seeds` plays more.
const SEEDS: u64 = 2_000;

fn told(plan: Plan, failure: &Failure) -> String {
    format!("{plan:?}\n{failure}\n{}", plan.trace().1.join("\n"))
}

#[test]
fn no_rule_is_broken_in_two_thousand_histories() {
    let half = |from, to| move || sweep(from..to, Broken::Nothing);
    let played = std::thread::scope(|scope| {
        let parts = [half(0, SEEDS / 2), half(SEEDS / 2, SEEDS)].map(|part| scope.spawn(part));
        parts.map(|part| part.join().unwrap())
    });
    let mut summary = Summary::default();
    for part in played {
        match part {
            Ok(part) => summary += part,
            Err((seed, failure)) => panic!("seed {seed}: {}", told(Plan::of_seed(seed), &failure)),
        }
    }
    println!("{summary}");
    // A world in which nothing goes wrong would prove nothing.
    assert!(summary.crashes > SEEDS && summary.faults > SEEDS && summary.spoiled > SEEDS / 4, "{summary}");
    assert!(summary.recoveries > SEEDS, "{summary}");
    assert!(summary.promises > 3 * SEEDS && summary.attempts > 6 * SEEDS && summary.audits > SEEDS, "{summary}");
}

#[test]
fn the_same_seed_is_the_same_history() {
    for seed in [3, 14, 159] {
        let (first, second) = (Plan::of_seed(seed).trace(), Plan::of_seed(seed).trace());
        assert_eq!(first, second);
        assert_ne!(first.1, Plan::of_seed(seed + 1).trace().1);
    }
}

/// A short history: the power goes at every disk call of it, with different sectors each time; the process is killed there;
/// the call fails; the disk is full there.
fn exhaust(short: Plan) -> Summary {
    let calls = short.run().unwrap().calls;
    let mut summary = Summary::default();
    for call in 1..=calls {
        let cuts = (0..2).map(|sectors| Plan { die: Some((call, true)), sectors: Some(sectors), ..short });
        let kill = Plan { die: Some((call, false)), ..short };
        let failures =
            [ErrorKind::Other, ErrorKind::StorageFull].map(|kind| Plan { fail: Some((call, kind)), ..short });
        for plan in cuts.chain([kill]).chain(failures) {
            match plan.run() {
                Ok(played) => summary += played,
                Err(failure) => panic!("{}", told(plan, &failure)),
            }
        }
    }
    println!("{calls} calls: {summary}");
    summary
}

#[test]
fn one_message_survives_a_crash_and_a_failure_at_every_call() {
    let summary = exhaust(Plan::short(1, 1, 1));
    assert!(summary.crashes > 100, "{summary}");
}

#[test]
fn messages_of_two_clients_in_several_segments_survive_a_crash_and_a_failure_at_every_call() {
    let summary = exhaust(Plan::short(3, 2, 1));
    assert!(summary.crashes > 150, "{summary}");
}

/// Which rule notices a defect, and within how many seeds.
const DEFECTS: &[(Broken, Rule, u64)] = &[
    (Broken::AnswersBeforeSync, Rule::Promise, 60),
    (Broken::NoDirectorySync, Rule::Promise, 60),
    (Broken::StopsAtFirstBadFrame, Rule::Promise, 60),
    (Broken::StopsAtFirstBadFrame, Rule::Facts, 60),
    (Broken::LosesSettlements, Rule::Settlement, 60),
    // It takes a sync that fails in a commit, no end of the process, and then a crash.
    (Broken::RetriesSync, Rule::Promise, 1_500),
    (Broken::TrustsMemory, Rule::Settlement, 200),
    (Broken::ForgetsHolds, Rule::Attempt, 60),
    (Broken::DefersOtherwise, Rule::Ledger, 60),
    (Broken::DefersOtherwiseBesideDamage, Rule::Ledger, 60),
    (Broken::ForgetsMail, Rule::Balance, 60),
    (Broken::CutsContents, Rule::Content, 60),
    (Broken::CutsShort, Rule::Damage, 60),
    (Broken::GivesUpAtBadSector, Rule::Recovery, 60),
    (Broken::RecoverAlwaysAdds, Rule::Recovery, 60),
    (Broken::RecoverSetsNothingAside, Rule::Recovery, 60),
    (Broken::LineWithoutEnd, Rule::Bounds, 600),
    (Broken::KeepsContents, Rule::Bounds, 60),
    (Broken::SegmentForEachBatch, Rule::Bounds, 60),
    (Broken::ConnectsAtWill, Rule::Bounds, 60),
    (Broken::KeepsRefusedTwice, Rule::Bounds, 60),
    (Broken::TrustsDoubt, Rule::Delivery, 60),
    (Broken::PanicsOnDamage, Rule::Panic, 60),
];

/// Whether the rules notice a defect as [`DEFECTS`] says.
fn assert_noticed(broken: Broken) {
    let expected: Vec<_> = DEFECTS.iter().filter(|(defect, ..)| *defect == broken).collect();
    assert!(!expected.is_empty(), "{broken:?}");
    for (_, rule, seeds) in expected {
        let mut others = BTreeMap::new();
        let mut is_first = |seed| {
            let failed = Plan { broken, ..Plan::of_seed(seed) }.run().err();
            failed.is_some_and(|failure| {
                others.entry(format!("{:?}", failure.rule)).or_insert(seed);
                failure.rule == *rule
            })
        };
        match (0..*seeds).find(|seed| is_first(*seed)) {
            Some(seed) => println!("{broken:?}: rule {rule:?} notices it at seed {seed}"),
            None => panic!("{broken:?}: rule {rule:?} does not notice it in {seeds} seeds, others do: {others:?}"),
        }
    }
}

#[test]
fn a_250_before_the_sync_is_noticed() {
    assert_noticed(Broken::AnswersBeforeSync);
}

#[test]
fn a_missing_sync_of_the_directory_is_noticed() {
    assert_noticed(Broken::NoDirectorySync);
}

#[test]
fn a_recovery_that_stops_at_the_first_bad_frame_is_noticed() {
    assert_noticed(Broken::StopsAtFirstBadFrame);
}

#[test]
fn a_settlement_that_is_lost_is_noticed() {
    assert_noticed(Broken::LosesSettlements);
}

#[test]
fn a_failed_sync_that_is_tried_again_and_believed_is_noticed() {
    assert_noticed(Broken::RetriesSync);
}

#[test]
fn a_rule_that_cannot_fail_is_none() {
    for rule in 0..=Rule::Panic as usize {
        assert!(DEFECTS.iter().any(|(_, noticed_by, _)| *noticed_by as usize == rule), "rule number {rule}");
    }
    let broken: BTreeMap<_, _> = DEFECTS.iter().map(|(broken, ..)| (*broken as usize, *broken)).collect();
    // Those above have tests of their own.
    broken.into_values().filter(|broken| *broken as usize > Broken::RetriesSync as usize).for_each(assert_noticed);
}
