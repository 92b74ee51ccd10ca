//! `restante journal export`: messages of any state, by selectors, as files or as one mbox. Overwrites nothing.

use super::mbox::{Mboxrd, from_line};
use super::{Failed, How, accepted, remove_if_there, sync, write};
use crate::cli::args::Cli;
use crate::cli::output::Output;
use crate::cli::progress::{Axis, Progress, Unit};
use crate::cli::queue::{Live, Source, all_entries};
use crate::cli::select::Chosen;
use crate::cli::{exit, journal};
use crate::clock;
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use restante_index::Row;
use restante_journal::{DirStorage, ReadError, Reader, Storage as _};
use serde_json::json;
use std::fs::{File, OpenOptions};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// ID.eml as it was accepted and ID.json with its envelope, in a directory
    Eml,
    /// One file (mboxrd); of the envelope it has the sender alone
    Mbox,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Where to: a directory that is empty or not there, or a file that is not there
    #[arg(value_name = "OUT")]
    pub(crate) out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "eml")]
    pub(crate) format: Shape,
    #[command(flatten)]
    pub(crate) chosen: Chosen,
}

/// Where it goes.
enum Target {
    Directory(PathBuf),
    Mbox { path: PathBuf, part: PathBuf, file: File },
}

pub(crate) fn run(cli: &Cli, args: &Export, output: Output) -> anyhow::Result<u8> {
    let data = match journal::data_dir(cli, output) {
        Ok(data) => data,
        Err(code) => return Ok(code),
    };
    let (selector, now) = (&args.chosen.selector, clock::now());
    let query = restante_index::Selector { pending: false, given_up: false, ..selector.query(now) };
    let mut source = Source::open(&data, query, selector.text.is_some(), output)?;
    let live = Live::ask(cli);
    let mut reader = Reader::new(source.storage().clone());
    let mut target = Target::open(args)?;
    let blob_bytes: u64 = source.storage().list_blobs()?.iter().map(|blob| blob.bytes).sum();
    let total = journal::segment_bytes(&data)?.saturating_add(blob_bytes);
    let mut progress = Progress::new(output, "export", Unit::Bytes, total);
    let axis = Axis::new("at the mail of", [None, None]);
    let (mut messages, mut unreadable, mut is_damaged) = (0_u64, 0_u64, false);
    loop {
        let page = source.next_page()?;
        if page.is_empty() {
            break;
        }
        for row in page.iter().filter(|row| all_entries(row, &live).iter().any(|entry| selector.matches(entry, now))) {
            match target.take(&mut reader, row) {
                Ok(()) => messages += 1,
                Err(Failed::Read(why)) => {
                    unreadable += 1;
                    is_damaged |= !matches!(why, ReadError::Io(_));
                    output.note(&format!("restante: cannot export {}: {why}", row.id));
                }
                Err(Failed::Write(path, error)) => {
                    target.give_up();
                    return Err(error).with_context(|| format!("cannot write {}", path.display()));
                }
            }
            progress.advance(row.size, &axis.at(row.accepted_at));
        }
    }
    drop(progress);
    target.close(messages)?;
    let out = args.out.display().to_string();
    if output.json {
        output.object(&json!({"type": "export", "out": out, "messages": messages, "unreadable": unreadable}));
    } else {
        output.line(&format!("exported {messages} message(s) to {out}; {unreadable} could not be read"));
    }
    Ok(match (messages, unreadable) {
        (0, 0) if selector.narrows() => exit::NOTHING_MATCHED,
        (_, 0) => exit::DONE,
        _ if is_damaged => exit::DAMAGED,
        (0, _) => exit::FAILED,
        _ => exit::PARTLY,
    })
}

impl Target {
    fn open(args: &Export) -> anyhow::Result<Self> {
        let out = &args.out;
        if args.format == Shape::Eml {
            std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
            let mut there = std::fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))?;
            if there.next().is_some() {
                bail!("{} is not empty; nothing was exported: name an empty directory", out.display());
            }
            return Ok(Self::Directory(out.clone()));
        }
        if out.symlink_metadata().is_ok() {
            bail!("{} exists; nothing was exported: name another file", out.display());
        }
        let mut part = out.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        remove_if_there(&part)
            .and_then(|()| OpenOptions::new().write(true).create_new(true).open(&part))
            .map(|file| Self::Mbox { path: out.clone(), part: part.clone(), file })
            .with_context(|| format!("cannot write {}", part.display()))
    }

    fn take(&mut self, reader: &mut Reader<DirStorage>, row: &Row) -> Result<(), Failed> {
        match self {
            Self::Directory(dir) => {
                let how = |to: &restante_index::RecipientRow| How {
                    state: to.word(),
                    attempts: to.attempts,
                    next_at: to.next_at(),
                };
                write(reader, dir, (row.id, row.position), &row.recipients.iter().map(how).collect::<Vec<_>>())
            }
            Self::Mbox { part, file, .. } => {
                let written = |error| Failed::Write(part.clone(), error);
                let before = file.stream_position().map_err(written)?;
                let done = append(reader, row, file, part);
                if matches!(done, Err(Failed::Read(_))) {
                    // Half a message would look like a whole one.
                    file.set_len(before).and_then(|()| file.seek(SeekFrom::Start(before))).map_err(written)?;
                }
                done
            }
        }
    }

    fn give_up(&self) {
        if let Self::Mbox { part, .. } = self {
            let _stays_a_part = remove_if_there(part);
        }
    }

    /// All is on stable storage, under its name. An mbox without a message is none.
    fn close(self, messages: u64) -> anyhow::Result<()> {
        match &self {
            Self::Directory(dir) => sync(dir),
            Self::Mbox { .. } if messages == 0 => {
                self.give_up();
                Ok(())
            }
            Self::Mbox { path, part, file } => {
                file.sync_all().with_context(|| format!("cannot write {}", part.display()))?;
                if path.symlink_metadata().is_ok() {
                    bail!("{} was made meanwhile; the export is {}", path.display(), part.display());
                }
                std::fs::rename(part, path).with_context(|| format!("cannot make {}", path.display()))?;
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                sync(parent.unwrap_or(Path::new(".")))
            }
        }
    }
}

fn append(reader: &mut Reader<DirStorage>, row: &Row, file: &mut File, part: &Path) -> Result<(), Failed> {
    let (accepted, mut content) = accepted(reader, row.id, row.position)?;
    let mut put = |bytes: &[u8]| file.write_all(bytes).map_err(|error| Failed::Write(part.to_owned(), error));
    put(from_line(&accepted.envelope.reverse_path, accepted.trace.received_at).as_bytes())?;
    let mut quoting = Mboxrd::default();
    while let Some(piece) = content.next_chunk()? {
        put(&quoting.piece(&piece))?;
    }
    put(&quoting.end())
}
