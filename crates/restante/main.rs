//! `restante`: a journaling SMTP relay and backup MX. Reads the command line and hands over to the command.

mod cli;
mod clock;
mod config;
mod import;
mod merge;
mod replay;
mod routing;
mod serve;

use clap::Parser as _;
use cli::args::{Cli, Command, Journal};
use cli::output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json, cli.global.plain, cli.global.no_color);
    // Whatever we make is for us alone: mail is in it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let code = run(&cli, output).unwrap_or_else(|error| {
        output.note(&format!("restante: {}", cli::words::causes(&error)));
        cli::exit::FAILED
    });
    match output.lost() {
        Some(why) => {
            output.note(&format!("restante: cannot write to standard output: {why}"));
            ExitCode::from(if code == cli::exit::DONE { cli::exit::FAILED } else { code })
        }
        None => ExitCode::from(code),
    }
}

fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    match &cli.command {
        Command::Serve(serve) => match config::resolve(&cli.flags()) {
            Ok(config) => serve::run(config, cli.flags(), serve.stop_with_stdin),
            Err(invalid) => {
                output.note(invalid.render(output.color).trim_end());
                Ok(invalid.exit_code())
            }
        },
        Command::Status(daemon) => Ok(cli::status::run(cli, daemon, output)),
        Command::Queue(queue) => cli::queue::run(cli, queue, output),
        Command::Try => cli::try_it::run(output),
        Command::Recover(recover) => cli::recover::run(cli, recover, output),
        Command::Replay(replay) => cli::replay::run(cli, replay, output),
        Command::Journal(Journal::Backup(backup)) => cli::backup::run(cli, backup, output),
        Command::Journal(Journal::Ls(selector)) => {
            cli::queue::list(cli, selector, cli::queue::Held::Everything, output)
        }
        Command::Journal(Journal::Stats) => cli::stats::run(cli, output),
        Command::Journal(Journal::Export(export)) => cli::export::selected::run(cli, export, output),
        Command::Journal(Journal::Import(import)) => cli::import::run(cli, import, output),
        Command::Verify => cli::verify::run(cli, output),
        Command::Init(init) => cli::init::run(init, cli.flags().data.as_deref(), output),
        Command::Config(config) => Ok(cli::config::run(cli, config, output)),
        Command::Reload(daemon) => Ok(cli::reload::run(cli, daemon, output)),
        Command::Completions { shell } => Ok(cli::packaging::completions(*shell, output)),
        Command::Man { dir } => cli::packaging::man(dir, output),
        Command::Log(log) => cli::log::run(cli, log, output),
    }
}
