//! The steps of the story. Each says what happens and what it proves; the first thing that goes wrong ends it.

use super::message::{Account, Message, Sent};
use super::narrator::Narrator;
use super::stage::{Stage, date};
use super::yours;
use anyhow::{Context as _, ensure};
use restante_envelope::TransactionId;
use std::path::Path;
use tokio::time::Instant;

/// Tells it in an empty directory, and returns what became of all mail.
pub(super) async fn tell(dir: &Path, mut narrator: Narrator) -> anyhow::Result<Account> {
    let narrator = &mut narrator;
    let mut stage = Stage::build(dir)?;
    let stage = &mut stage;
    straight_through(stage, narrator).await.context("with the primary up")?;
    let first = stage.sent().len();
    outage(stage, narrator).await.context("with the primary off")?;
    crash(stage, narrator).await.context("at the kill -9")?;
    recover(stage, narrator, first).await.context("at recover")?;
    restart(stage, narrator, first).await.context("at the restart")?;
    the_primary_returns(stage, narrator).await.context("with the primary back")?;
    let account = check(stage, narrator, first).await.context("at the check")?;
    if !narrator.is_interactive() || !account.is_whole() {
        return Ok(account);
    }
    yours::play(stage, narrator).await
}

/// Sends a message and says so.
pub(super) async fn send(
    stage: &mut Stage,
    narrator: &mut Narrator,
    message: Message,
) -> anyhow::Result<TransactionId> {
    let about = format!("{}, {} bytes, to {}", message.what, message.content.len(), message.to.join(" and "));
    let id = stage.send(message).await?;
    narrator.say(&format!("250 queued as {id}   ({about})"));
    Ok(id)
}

async fn straight_through(stage: &mut Stage, narrator: &mut Narrator) -> anyhow::Result<()> {
    narrator.begin("up", "The primary is up: mail goes straight through.");
    stage.primary.switch_on()?;
    let primary = stage.primary.address();
    let smtp = stage.start_daemon().await?.smtp;
    narrator
        .say(&format!("A mail server, the primary, listens on {primary}; `restante serve` in front of it on {smtp}."));
    let start = Instant::now();
    send(stage, narrator, Message::plain("the first", "carl", &date())).await?;
    stage.everything_arrived().await?;
    narrator.say(&format!("The primary has it, {} after it was sent.", seconds(start)));
    stage.balance(0).await?;
    narrator.end().await;
    Ok(())
}

async fn outage(stage: &mut Stage, narrator: &mut Narrator) -> anyhow::Result<()> {
    narrator.begin("outage", "The primary is switched off: mail is still accepted, and waits.");
    stage.primary.switch_off().await;
    let first = stage.sent().len();
    for message in [
        Message::plain("plain", "carl", &date()),
        Message::dots(&date()),
        Message::eight_bit(&date()),
        Message::two_recipients(&date()),
    ] {
        send(stage, narrator, message).await?;
    }
    show_queue(stage, narrator, first).await?;
    narrator.say("Each 250 was said after the message was on stable storage.");
    narrator.end().await;
    Ok(())
}

async fn crash(stage: &mut Stage, narrator: &mut Narrator) -> anyhow::Result<()> {
    narrator.begin("kill", "One more message, and right after its 250: kill -9.");
    send(stage, narrator, Message::large(&date())).await?;
    stage.kill_daemon()?;
    narrator.say("The daemon is dead. It could write nothing, close nothing, tell nobody.");
    narrator.end().await;
    Ok(())
}

async fn recover(stage: &mut Stage, narrator: &mut Narrator, first: usize) -> anyhow::Result<()> {
    narrator.begin("recover", "`recover` reads what is on the disk. (A restart does it, too; this shows the account.)");
    let run = stage.run(&["recover"]).await?;
    narrator.show(&run);
    let owed = owed(stage, first);
    stage.balance(owed).await?;
    narrator.say(&format!(
        "Every recipient that had a 250 is there: {} accepted, {owed} of them pending.",
        stage.recipients()
    ));
    narrator.end().await;
    Ok(())
}

async fn restart(stage: &mut Stage, narrator: &mut Narrator, first: usize) -> anyhow::Result<()> {
    narrator.begin("restart", "The daemon starts again. The primary is still off: everything still waits.");
    stage.start_daemon().await?;
    show_queue(stage, narrator, first).await?;
    narrator.say("And it takes new mail:");
    send(stage, narrator, Message::plain("after the crash", "ida", &date())).await?;
    narrator.end().await;
    Ok(())
}

async fn the_primary_returns(stage: &mut Stage, narrator: &mut Narrator) -> anyhow::Result<()> {
    narrator.begin("return", "The primary is switched on. Nobody gives a command.");
    stage.primary.switch_on()?;
    let start = Instant::now();
    stage.everything_arrived().await?;
    narrator.say(&format!("All mail that waited arrived by itself within {}.", seconds(start)));
    narrator.end().await;
    Ok(())
}

async fn check(stage: &mut Stage, narrator: &mut Narrator, first: usize) -> anyhow::Result<Account> {
    narrator.begin("check", "Each message at the primary is compared with what was sent, behind our Received header.");
    // Delivered is one thing, durably noted another: a duplicate could still come until then.
    stage.balance(0).await?;
    narrator.show(&stage.run(&["verify"]).await?);
    let owed = ids(stage.sent(), first);
    let sent_lines = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.contains("status=sent")).map(str::to_owned).collect()
    };
    let all_logged = |text: &str| {
        let lines = sent_lines(text);
        owed.iter().all(|id| lines.iter().any(|line| line.contains(id)))
    };
    let log = stage.run_until(&["log"], "the deliveries", all_logged).await?;
    narrator.show_lines(&log, sent_lines(&log.stdout).iter().map(String::as_str));
    let account = stage.account()?;
    narrator.say(match account.duplicates {
        0 => "No message came twice.",
        _ => "Some came twice: a kill between the primary's reply and our note of it makes a duplicate, never a loss.",
    });
    narrator.end().await;
    Ok(account)
}

/// Shows `queue ls`, and sees to it that everything sent from the nth on is in it.
async fn show_queue(stage: &Stage, narrator: &mut Narrator, first: usize) -> anyhow::Result<()> {
    let run = stage.run(&["queue", "ls"]).await?;
    narrator.show(&run);
    let missing: Vec<_> = ids(stage.sent(), first).into_iter().filter(|id| !run.stdout.contains(id)).collect();
    ensure!(missing.is_empty(), "`queue ls` does not list {}:\n{}", missing.join(", "), run.stdout);
    Ok(())
}

fn ids(sent: &[Sent], first: usize) -> Vec<String> {
    sent.iter().skip(first).map(|sent| sent.id.to_string()).collect()
}

/// Recipients of everything sent from the nth on.
fn owed(stage: &Stage, first: usize) -> u64 {
    stage.sent().iter().skip(first).map(|sent| sent.message.to.len() as u64).sum()
}

fn seconds(since: Instant) -> String {
    match since.elapsed() {
        short if short.as_secs() == 0 => format!("{} ms", short.as_millis()),
        long => format!("{:.1} s", long.as_secs_f64()),
    }
}
