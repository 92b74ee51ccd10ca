//! Gives the files that root made in a data directory to the user whose directory it is, so that the next daemon, which runs
//! as that user, can open them.
//!
//! Follows no link and touches no file with a second name: the user may have put one there that is not his.

use rustix::fs::{Dir, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, open, openat};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// Where we make files, below the data directory.
const DIRECTORIES: [&str; 2] = ["log", "torn"];
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Does nothing unless we are root and the directory is another user's.
pub(crate) fn hand_over(dir: &Path) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let directory = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let owner = fstat(&directory)?;
    if owner.st_uid == 0 {
        return Ok(());
    }
    let (user, group) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
    give_files(&directory, user, group)?;
    for name in DIRECTORIES {
        match openat(&directory, name, FLAGS | OFlags::DIRECTORY, Mode::empty()) {
            Ok(below) => {
                give_files(&below, user, group)?;
                give(&below, user, group)?;
            }
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn give_files(directory: &OwnedFd, user: Uid, group: Gid) -> Result<(), Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        // What cannot be opened, a socket or a link, is none of our files.
        let Ok(file) = openat(directory, entry.file_name(), FLAGS, Mode::empty()) else { continue };
        let found = fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile && found.st_nlink == 1 {
            give(&file, user, group)?;
        }
    }
    Ok(())
}

fn give(file: impl AsFd, user: Uid, group: Gid) -> Result<(), Errno> {
    if fstat(&file)?.st_uid == 0 { fchown(&file, Some(user), Some(group)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, chown, symlink};

    #[test]
    fn what_root_made_belongs_to_the_owner_and_nothing_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path().join("data");
        std::fs::create_dir_all(dir.join("torn")).unwrap();
        let stranger = directory.path().join("stranger");
        for file in [&dir.join("seg"), &dir.join("torn/x"), &stranger, &dir.join("named-twice")] {
            std::fs::write(file, "x").unwrap();
        }
        symlink(&stranger, dir.join("link")).unwrap();
        symlink(directory.path(), dir.join("log")).unwrap();
        std::fs::hard_link(dir.join("named-twice"), directory.path().join("twin")).unwrap();
        if !rustix::process::geteuid().is_root() {
            // Only root can make the case; for all others it does nothing.
            return hand_over(&dir).unwrap();
        }
        chown(&dir, Some(4711), Some(4712)).unwrap();
        hand_over(&dir).unwrap();
        let owner = |path: &Path| path.metadata().map(|found| (found.uid(), found.gid())).unwrap();
        for ours in ["seg", "torn", "torn/x"] {
            assert_eq!(owner(&dir.join(ours)), (4711, 4712), "{ours}");
        }
        for other in [&stranger, &dir.join("named-twice"), directory.path()] {
            assert_eq!(owner(other).0, 0, "{}", other.display());
        }
    }
}
