//! Stand-in for the real entry: resolves the configuration and says what is wrong with it.
#![cfg_attr(not(test), expect(dead_code, reason = "the commands that use the rest come with the daemon"))]

mod cli {
    pub(crate) mod args;
}
mod config;

fn main() -> std::process::ExitCode {
    use clap::Parser as _;
    use std::io::Write as _;
    let cli = cli::args::Cli::parse();
    match config::resolve(&cli.flags()) {
        Ok(config) => {
            let _ = writeln!(std::io::stdout(), "{config:#?}");
            std::process::ExitCode::SUCCESS
        }
        Err(invalid) => {
            let _ = write!(std::io::stderr(), "{}", invalid.render(false));
            invalid.exit_code().into()
        }
    }
}
