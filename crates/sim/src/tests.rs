//! The histories that every build plays, and the defects that the rules must notice.

use super::*;

/// Long histories. Half a minute of one processor; `cargo xtask sim --seeds` plays more.
const SEEDS: u64 = 2_000;
/// A defect must show within so many.
const SEEDS_OF_DEFECTS: u64 = 60;

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

/// The rules that notice a defect within the first seeds, in the order in which they do.
fn noticed(broken: Broken) -> Vec<Rule> {
    (0..SEEDS_OF_DEFECTS)
        .filter_map(|seed| Plan { broken, ..Plan::of_seed(seed) }.run().err())
        .map(|f| f.rule)
        .collect()
}

#[test]
fn a_250_before_the_sync_is_noticed() {
    let rules = noticed(Broken::AnswersBeforeSync);
    assert!(rules.contains(&Rule::Promise), "{rules:?}");
}

#[test]
fn a_missing_sync_of_the_directory_is_noticed() {
    let rules = noticed(Broken::NoDirectorySync);
    assert!(rules.contains(&Rule::Promise), "{rules:?}");
}

#[test]
fn a_recovery_that_stops_at_the_first_bad_frame_is_noticed() {
    let rules = noticed(Broken::StopsAtFirstBadFrame);
    assert!(rules.contains(&Rule::Promise), "{rules:?}");
}

#[test]
fn a_settlement_that_is_lost_is_noticed() {
    let rules = noticed(Broken::LosesSettlements);
    assert!(rules.contains(&Rule::Settlement), "{rules:?}");
}
