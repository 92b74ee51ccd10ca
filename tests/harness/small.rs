//! A small file system of its own, in memory. Needs root.

use super::{require_root, run, tool};
use std::path::{Path, PathBuf};

/// Mounted; unmounted with the value.
pub struct Small(PathBuf);

impl Small {
    /// Of this size, such as `8m`.
    pub fn mount(size: &str, at: &Path) -> Self {
        require_root();
        let options = format!("size={size},mode=0700");
        run(tool("mount").args(["-t", "tmpfs", "-o", &options, "restante-test"]).arg(at)).expect_code(0);
        Self(at.to_owned())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = run(tool("umount").arg("--lazy").arg(&self.0));
    }
}
