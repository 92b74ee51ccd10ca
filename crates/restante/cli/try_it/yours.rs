//! After the story: a person at the keys. Ends by itself when nobody types, and never leaves mail behind that had a 250.

use super::message::{Account, Message};
use super::narrator::Narrator;
use super::stage::{Stage, date};
use super::story;
use std::time::Duration;
use tokio::time::timeout;

/// Without a key for so long, nobody is there.
const NOBODY_THERE: Duration = Duration::from_secs(20);
const KEYS: &str =
    "[m]ail  [d]own: primary off  [u]p: primary on  [k]ill -9 and restart  (letter, then Enter)   Enter alone: end";

/// Until `q`, the end of input, or silence; then waits for what is still owed.
pub(super) async fn play(stage: &mut Stage, narrator: &mut Narrator) -> anyhow::Result<Account> {
    narrator.say("");
    narrator.say("Now yours.");
    if let Some(admin) = stage.admin() {
        narrator.say(&format!("Status page: http://{admin}/"));
    }
    narrator.say(KEYS);
    loop {
        tokio::select! {
            arrived = stage.arrival() => {
                let to = arrived?.to.join(", ");
                narrator.say(&format!("the primary has mail for {to}"));
            }
            key = timeout(NOBODY_THERE, narrator.key()) => match key {
                // Enter alone ends it as well: that is what went on all along, and nobody types on.
                Ok(Some(key)) if !matches!(key.trim(), "q" | "") => press(stage, narrator, key.trim()).await?,
                Ok(_) => break,
                Err(_silence) => {
                    narrator.say(&format!("No key for {} s.", NOBODY_THERE.as_secs()));
                    break;
                }
            },
        }
    }
    if !stage.primary.is_on() {
        narrator.say("The primary is switched on, so that nothing is left.");
        stage.primary.switch_on()?;
    }
    stage.everything_arrived().await?;
    stage.balance(0).await?;
    stage.account()
}

async fn press(stage: &mut Stage, narrator: &mut Narrator, key: &str) -> anyhow::Result<()> {
    match key {
        "m" => {
            story::send(stage, narrator, Message::plain("yours", "you", &date())).await?;
            if !stage.primary.is_on() {
                narrator.say("It waits until the primary is up.");
            }
        }
        "d" => {
            stage.primary.switch_off().await;
            narrator.say("The primary is off.");
        }
        "u" => {
            stage.primary.switch_on()?;
            narrator.say("The primary is on.");
        }
        "k" => {
            stage.kill_daemon()?;
            narrator.say("The daemon is dead.");
            let daemon = stage.start_daemon().await?;
            narrator.say(&format!("It runs again. Status page: http://{}/", daemon.admin));
        }
        _ => narrator.say(KEYS),
    }
    Ok(())
}
