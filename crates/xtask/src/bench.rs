//! `cargo xtask bench`: runs the benches, and what of them belongs into the README is written there. Judges no figure.

use crate::{hot, machine, peers, readme};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs all that is asked for. What would stop the second half is found before the first begins.
pub(crate) fn run(root: &Path, peers: Option<&Path>) -> Result<()> {
    let readme = root.join("crates/benches/README.md");
    let script = peers.map(peers::script).transpose()?;
    readme::require(&readme, &["hot", "peers"])?;
    let about = machine::about(root)?;
    let results = hot::run(root)?;
    readme::replace(&readme, "hot", &format!("{about}\n\n{}", hot::table(&results)))?;
    println!("xtask: {}: {} benches written", readme.display(), results.len());
    if let Some(script) = script {
        let about = machine::about(root)?;
        let results = peers::run(root, &script)?;
        readme::replace(&readme, "peers", &format!("{about}\n\n{}", peers::table(&results)?))?;
        println!("xtask: {}: the peers' table written", readme.display());
    }
    Ok(())
}

/// Where cargo builds to, and where the results are kept.
pub(crate) fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// The cargo that runs this task.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root);
    cargo
}

/// Runs it to its end, with our terminal; an error unless it exits with 0.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(status.success(), "{command:?} failed: {status}");
    Ok(())
}

/// A command's output, without the white space around it; an error unless it exits with 0.
pub(crate) fn said(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?} failed: {}: {}", output.status, error.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
