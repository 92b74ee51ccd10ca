//! `restante completions` and `restante man`: what packages ship beside the binary, made from the command line's own
//! definition. Nothing here is written by hand, so nothing can be out of date.

use super::args::Cli;
use super::exit;
use super::output::Output;
use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use std::io::{self, Write as _};
use std::path::Path;

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: Shell, output: Output) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "restante", &mut script);
    output.line(String::from_utf8_lossy(&script).trim_end());
    exit::DONE
}

/// Writes `restante.1`, `restante-queue.1`, `restante-queue-ls.1` and so on.
pub(crate) fn man(dir: &Path, output: Output) -> anyhow::Result<u8> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let pages = pages().context("cannot render the manual")?;
    for (name, page) in &pages {
        let path = dir.join(name);
        std::fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if output.json {
        let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
        output.object(&serde_json::json!({"type": "man", "dir": dir, "pages": names}));
    } else {
        output.line(&format!("{} manual pages in {}", pages.len(), dir.display()));
    }
    Ok(exit::DONE)
}

/// All pages, by file name.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command();
    root.build();
    let mut pages = Vec::new();
    let mut commands = vec![root];
    while let Some(command) = commands.pop() {
        let shown = |sub: &&Command| !sub.is_hide_set() && sub.get_name() != "help";
        commands.extend(command.get_subcommands().filter(shown).cloned());
        let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
        pages.push((format!("{name}.1"), page(command)?));
    }
    pages.sort();
    Ok(pages)
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_subcommands {
        man.render_subcommands_section(&mut page)?;
    }
    let (notes, codes) = match after.find("Exit codes:") {
        Some(at) => after.split_at(at),
        None => (after.as_str(), ""),
    };
    section(&mut page, "NOTES", notes)?;
    section(&mut page, "EXIT STATUS", codes.trim_start_matches("Exit codes:"))?;
    Ok(page)
}

/// Text as it stands, line by line: the codes are a table.
fn section(page: &mut Vec<u8>, title: &str, text: &str) -> io::Result<()> {
    let text = text.trim_matches('\n');
    if text.trim().is_empty() {
        return Ok(());
    }
    writeln!(page, ".SH \"{title}\"\n.nf")?;
    for line in text.lines() {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // A point or an apostrophe at the start would be an order to the formatter.
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        writeln!(page, "{guard}{line}")?;
    }
    writeln!(page, ".fi")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in
            ["restante.1", "restante-serve.1", "restante-queue.1", "restante-queue-hold.1", "restante-config-check.1"]
        {
            assert!(names.contains(&name), "{name} in {names:?}");
        }
        assert!(!names.iter().any(|name| name.contains("help")), "{names:?}");
        for (name, page) in &pages {
            let page = std::str::from_utf8(page).unwrap();
            assert!(page.starts_with(".ie") || page.contains(".TH "), "{name}");
            let codes = page.split(".SH \"EXIT STATUS\"").nth(1);
            let expected =
                matches!(name.as_str(), "restante.1" | "restante-serve.1" | "restante-verify.1" | "restante-reload.1");
            assert!(!expected || codes.is_some_and(|codes| codes.contains("0 ")), "{name} has no exit codes");
            assert!(!page.contains("stop\\-with\\-stdin"), "{name} shows a hidden flag");
        }
    }

    #[test]
    fn no_line_of_text_is_an_order_to_the_formatter() {
        let mut page = Vec::new();
        section(&mut page, "NOTES", "\n.de x\n'so y\na\\b -c\n").unwrap();
        assert_eq!(page, b".SH \"NOTES\"\n.nf\n\\&.de x\n\\&'so y\na\\eb \\-c\n.fi\n");
    }
}
