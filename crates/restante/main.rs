//! `restante`: a journaling SMTP relay and backup MX. Reads the command line and hands over to the command.

mod cli;
mod clock;
mod config;
mod serve {
    pub(crate) mod attempt;
    pub(crate) mod log;
    pub(crate) mod metrics;
}

use clap::Parser as _;
use cli::args::{Cli, Command};
use cli::output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.global.json, cli.global.plain, cli.global.no_color);
    // Whatever we make is for us alone: mail is in it.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    match run(&cli, output) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            output.note(&format!("restante: {error:#}"));
            ExitCode::from(cli::exit::FAILED)
        }
    }
}

fn run(cli: &Cli, output: Output) -> anyhow::Result<u8> {
    match &cli.command {
        Command::Recover(recover) => return cli::recover::run(cli, recover, output),
        Command::Verify => return cli::verify::run(cli, output),
        Command::Log(log) => return cli::log::run(cli, log, output),
        Command::Serve(_) | Command::Try | Command::Status(_) | Command::Queue(_) => {}
    }
    output.note("not built yet");
    Ok(cli::exit::FAILED)
}
