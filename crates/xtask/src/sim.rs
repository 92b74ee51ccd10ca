//! `cargo xtask sim`: has cargo build and start the simulator. Knows nothing of what it does.

use crate::bench::{cargo, succeed};
use anyhow::Result;
use std::path::Path;

/// In the build that the tests have made already.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let build = ["run", "--locked", "--quiet", "--package", "restante-sim", "--bin", "sim", "--"];
    succeed(cargo(root).args(build).args(arguments))
}
