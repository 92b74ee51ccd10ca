//! The command line: which commands, flags and exit codes there are. Help, usage errors and parsing all come from here.
//!
//! Decides nothing and reads nothing: routes and addresses of `serve` stay text, so that the configuration can show
//! all their errors together.

use super::backup::Backup;
use super::export::selected::Export;
use super::import::Import;
use super::select::{ARGUMENTS, Address, Chosen, Selector, address};
use crate::config::{Flags, HostPort};
use crate::serve::plan::Token;
use clap::{Args, Parser, Subcommand};
use restante_envelope::{Timestamp, TransactionId};
use std::path::PathBuf;

/// Scripts read these; they never change their meaning.
const EXIT_CODES: &str = "\
Exit codes:
  0 done                     5 daemon unreachable      9 journal damaged
  1 failed                   6 configuration invalid  10 unhealthy: cannot accept mail
  2 usage                    7 not permitted          12 the set changed since the plan
  3 partly done              8 journal locked        130 interrupted
  4 a selector matched nothing
Any other code means failure.";

const SERVE_HELP: &str = "\
Without --config and --route: ./restante.toml, then /etc/restante/restante.toml.
With --route and no --config no file is read. With both, the routes given replace those of the file.
Prints `ready: smtp IP:PORT` and `ready: admin IP:PORT` on standard error when mail can be accepted.
SIGTERM and SIGINT stop it; a second one at once.

Exit codes: 0 stopped, 1 port busy or disk failed, 2 bad flag, 6 bad configuration, 8 journal locked by another process";

const TRY_HELP: &str = "\
Needs no root and no network: everything happens on loopback, in a directory that is removed at the end.

Exit codes: 0 every message arrived byte for byte, 1 otherwise";

const RECOVER_HELP: &str = "\
Checks every byte, sets torn and damaged bytes aside, prints the account of every message ever accepted.
Never writes into an old segment. Run it as often as you like: the counts stay.
With --from (a rescued disk, a backup) a daemon may run: it takes over what it does not know, beside live mail.

Exit codes:
  0 clean or torn            2 usage                   8 journal locked: a daemon runs
  1 failed, or --deliver     3 --deliver sent some     9 damaged: all that is intact was recovered
    sent none                6 configuration invalid";

const VERIFY_HELP: &str = "\
Opens segments and blobs read-only and takes no lock: safe beside a running daemon.

Exit codes: 0 clean or torn, 1 no such directory, 6 configuration invalid, 9 damaged";

const BACKUP_HELP: &str = "\
Safe beside a running daemon. The copy is a journal itself: `restante verify`, `recover` and `serve` work on it by --data DIR.
Run it again, and only what is new is copied; what has left the journal leaves the copy.

Exit codes: 0 done, 1 failed, or DIR holds another journal, 2 usage, 6 configuration invalid, 8 a daemon runs on DIR";

const EXPORT_HELP: &str = "\
Works with the daemon dead. Overwrites nothing. Without a selector it is refused: --all for everything.

Exit codes:
  0 done        3 some cannot be read now      6 configuration invalid
  1 failed      4 the selector matched nothing 9 some are damaged: the rest was exported
  2 usage";

const IMPORT_HELP: &str = "\
Stop the other server first, and let restante run. Each message goes through the same checks as one that comes by SMTP;
what is not taken is named and stays where it is. Nothing there is changed or removed.
Run it again, and nothing is taken twice, as long as the journal has what was imported: `retain` after it is settled.
What was on hold there is on hold here.

Exit codes:
  0 all that was there is here     4 there is nothing to import
  1 failed, or nothing was taken   5 daemon unreachable: start it
  2 usage                          6 configuration invalid
  3 some are left where they are   7 not permitted";

const INIT_HELP: &str = "\
On a terminal it asks for what is not given. It writes the file, never over an existing one, and prints the DNS lines and
what the primary must allow.
Without a list of recipients every address of the domains is taken, and what the primary refuses later is bounced.

Exit codes: 0 written, 1 the file exists or cannot be written, 2 usage, 6 what would be written is invalid";

const RELOAD_HELP: &str = "\
The daemon reads its file again, with the flags it was started with. Routes, recipients, limits and the certificate are
swapped at once, and no session is lost. Other keys wait for a restart, and are named. SIGHUP does the same.
Recipients files need no reload: a changed one is read within seconds.

Exit codes: 0 swapped, 5 daemon unreachable, 6 configuration invalid: all is as before, 7 not permitted";

const CHECK_HELP: &str = "\
Reads what `serve` would read, opens no port and changes nothing. Warnings do not change the exit code.

Exit codes: 0 valid, 6 configuration invalid";

const LOG_HELP: &str = "\
Reads the files in DIR/log, compressed ones too: works with the daemon dead. A line is shown if it fits one of each
kind of selector given.

Exit codes: 0 done, 2 usage, 4 nothing matched, 6 configuration invalid, 130 interrupted";

const READ_HELP: &str = "\
Reads the index if it is up to date, else the journal itself: works with the daemon dead.

Exit codes: 0 done, 2 usage, 4 the selector matched nothing";

const CHANGE_HELP: &str = "\
Exit codes: 0 done, 2 usage, 3 partly done, 4 the selector matched nothing, 5 daemon unreachable, 7 not permitted";

const BOUNCE_HELP: &str = "\
Without --yes it prints a plan and changes nothing. With the plan's token it does just that: if
any of the set has changed meanwhile, or another message would be taken, nothing is done.
No report is sent to the senders. `queue undo` takes it back, until `retain` after.
What is being delivered at that moment, and the primary takes it, is sent all the same.

Exit codes:
  0 planned, or done         4 the selector matched nothing
  2 usage                    5 daemon unreachable
  3 done, but some were      7 not permitted
    delivered meanwhile     12 the set changed since the plan: nothing was done";

const REMOVE_HELP: &str = "\
Without --yes it prints a plan and changes nothing. With the plan's token it does just that: if
any of the set has changed meanwhile, or another message would be taken, nothing is done.
Nobody is told. `queue undo` takes it back, until `retain` after; then its bytes are gone.
What is being delivered at that moment, and the primary takes it, is sent all the same.

Exit codes:
  0 planned, or done         4 the selector matched nothing
  2 usage                    5 daemon unreachable
  3 done, but some were      7 not permitted
    delivered meanwhile     12 the set changed since the plan: nothing was done";

const UNDO_HELP: &str = "\
Takes effect at once. What was removed, bounced or expired can be taken up again until it leaves the
journal, `retain` after. `restante queue ls --state removed --state bounced` lists it.

Exit codes: 0 done, 2 usage, 4 nothing that matches can be undone, 5 daemon unreachable, 7 not permitted";

/// Journaling SMTP relay and backup MX: mail is on stable storage before the 250.
#[derive(Debug, Parser)]
#[command(name = "restante", version, after_help = EXIT_CODES)]
#[command(arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// One JSON object per line on standard output, each with a "type"
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) json: bool,
    /// No boxes, no symbols, no redrawing: one fact per line
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) plain: bool,
    /// No colour; NO_COLOR does the same
    #[arg(long, global = true, help_heading = "Everywhere")]
    pub(crate) no_color: bool,
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    pub(crate) config: Option<PathBuf>,
    /// The data directory, where the journal is [default: [journal] dir, else ./restante-data]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Everywhere")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// See it work, in a minute: a primary that fails, mail that waits, a kill -9, mail that arrives
    #[command(after_help = TRY_HELP)]
    Try,
    /// Account for every accepted message after a crash, and deliver what is pending
    #[command(after_help = RECOVER_HELP)]
    Recover(Recover),
    /// Check every byte of the journal and prove that no accepted message is missing
    #[command(after_help = VERIFY_HELP)]
    Verify,
    /// Deliver again what was already delivered in a time range: the primary lost it
    #[command(after_help = super::replay::HELP)]
    Replay(Box<super::replay::Replay>),
    /// Write a minimal configuration, and say what DNS and the primary need
    #[command(after_help = INIT_HELP)]
    Init(Init),
    /// Check or show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Have the daemon read its configuration again
    #[command(after_help = RELOAD_HELP)]
    Reload(Daemon),
    /// Show routes, the state of their primaries, and what is pending
    #[command(after_help = "Exit codes: 0 accepting mail, 5 daemon unreachable, 10 unhealthy: cannot accept mail")]
    Status(Daemon),
    /// List or change pending transactions
    #[command(subcommand)]
    Queue(Box<Queue>),
    /// What the journal holds: list it, back it up, and bring in the queue of another server
    #[command(subcommand)]
    Journal(Journal),
    /// Print the delivery log
    #[command(after_help = LOG_HELP)]
    Log(Log),
    /// Print a completion script for a shell
    #[command(after_help = "Such as: restante completions bash > /usr/share/bash-completion/completions/restante")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command
    #[command(after_help = "Its own pages of before are written over.\n\nExit codes: 0 written, 1 failed, 2 usage")]
    Man {
        /// Where to; made if it is missing
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// Our own name, as the PTR record of our address says it
    pub(crate) hostname: Option<String>,
    /// Take mail for these domains
    #[arg(long = "domain", value_name = "D[,D...]", value_delimiter = ',')]
    pub(crate) domains: Vec<String>,
    /// Bring it to this server
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) primary: Option<String>,
    /// The addresses that exist, one a line; others are refused at the door
    #[arg(long, value_name = "FILE")]
    pub(crate) recipients: Option<PathBuf>,
    /// Where to write it
    #[arg(long, value_name = "FILE", default_value = "./restante.toml")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Say what `serve` would do with the configuration, or everything that is wrong with it
    #[command(after_help = CHECK_HELP)]
    Check,
    /// Print every value in force, and where it comes from
    #[command(after_help = "The output is a configuration itself.\n\nExit codes: 0 printed, 6 configuration invalid")]
    Show,
}

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Take mail for DOMAIN[,DOMAIN...] and bring it to HOST[:PORT][,HOST[:PORT]...]; repeat for more routes
    #[arg(long = "route", value_name = "DOMAINS=HOSTS")]
    pub(crate) routes: Vec<String>,
    /// Speak SMTP here; repeat for more [default: [smtp] listen, without a file 127.0.0.1:2525]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) listen: Vec<String>,
    /// Speak HTTP here: status, metrics, and commands [default: [admin] http, else not at all]
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) admin: Option<String>,
    /// Our name in greetings and Received headers [default: hostname, else this machine's]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// Stop when standard input closes, so that no child of `try` outlives it
    #[arg(long, hide = true)]
    pub(crate) stop_with_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// First take over what the journal in DIR knows and this one does not; repeat for more
    #[arg(long, value_name = "DIR")]
    pub(crate) from: Vec<PathBuf>,
    /// Then offer everything pending to its primary, once
    #[arg(long)]
    pub(crate) deliver: bool,
    /// Deliver to this server instead of the route's primary
    #[arg(long, value_name = "HOST[:PORT]", requires = "deliver")]
    pub(crate) to: Option<HostPort>,
    /// Write each pending message to DIR: ID.eml as it was accepted, ID.json with its envelope
    #[arg(long, value_name = "DIR")]
    pub(crate) export: Option<PathBuf>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Journal {
    /// List every message the journal holds, settled ones too
    #[command(after_help = READ_HELP)]
    Ls(Selector),
    /// Say how much it holds, of what, for whom, and since when
    #[command(after_help = "Works with the daemon dead.\n\nExit codes: 0 done, 1 failed, 6 configuration invalid")]
    Stats,
    /// Write messages to files, settled ones too
    #[command(after_help = EXPORT_HELP)]
    Export(Export),
    /// Copy the journal to DIR, consistently, while the daemon runs
    #[command(after_help = BACKUP_HELP)]
    Backup(Backup),
    /// Take over mail that waits in another server's queue
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
}

#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// List pending transactions, and what happens to each next
    #[command(after_help = READ_HELP)]
    Ls(Selector),
    /// Show transactions in full: envelope, recipients, replies, history; by ID settled ones too
    #[command(after_help = READ_HELP)]
    Show(Show),
    /// Write a message's content to standard output, byte for byte as it was accepted
    #[command(
        after_help = "A terminal sees a view made safe: ? for control characters but tabs and ends of lines, for marks that turn or\n\
                      hide text, and for bytes that are no UTF-8. Pipes and files get every byte.\n\n\
                      Exit codes: 0 done, 2 usage, 4 no such transaction in the journal, 9 its bytes are damaged"
    )]
    Cat(Cat),
    /// Try now what is deferred
    #[command(after_help = CHANGE_HELP)]
    Flush(Flush),
    /// Freeze: nothing is tried until it is released
    #[command(after_help = CHANGE_HELP)]
    Hold(Operation),
    /// Let go what is on hold
    #[command(after_help = CHANGE_HELP)]
    Release(Operation),
    /// Give up, as refused for good; shows a plan first. No report is sent
    #[command(after_help = BOUNCE_HELP)]
    Bounce(Removal),
    /// Give up without a word to anybody; shows a plan first
    #[command(after_help = REMOVE_HELP)]
    Remove(Removal),
    /// Take up again what was bounced or removed: it is due at once
    #[command(after_help = UNDO_HELP)]
    Undo(Operation),
}

/// Transactions by name, or by selectors.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("named").required(true).multiple(true).args(ARGUMENTS).arg("named_ids"))]
pub(crate) struct Show {
    /// The transactions with these IDs
    #[arg(id = "named_ids", value_name = "ID")]
    pub(crate) ids: Vec<TransactionId>,
    #[command(flatten)]
    pub(crate) selector: Selector,
}

#[derive(Debug, Args)]
pub(crate) struct Cat {
    /// The transaction
    #[arg(value_name = "ID")]
    pub(crate) id: TransactionId,
}

#[derive(Debug, Args)]
pub(crate) struct Flush {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

#[derive(Debug, Args)]
pub(crate) struct Operation {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Why; it is written to the journal and the delivery log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

#[derive(Debug, Args)]
pub(crate) struct Removal {
    #[command(flatten)]
    pub(crate) chosen: Chosen,
    /// Why; it is written to the journal and the delivery log
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(crate) reason: String,
    /// Carry out the plan that ended with this token; the selectors must be given again
    #[arg(long, value_name = "TOKEN")]
    pub(crate) yes: Option<Token>,
    #[command(flatten)]
    pub(crate) daemon: Daemon,
}

/// How the daemon is reached.
#[derive(Debug, Args)]
pub(crate) struct Daemon {
    /// Reach the daemon here instead of by the socket in the data directory
    #[arg(long, value_name = "HOST:PORT", value_parser = with_port)]
    pub(crate) admin: Option<HostPort>,
}

#[derive(Debug, Args)]
pub(crate) struct Log {
    /// Wait for more
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Tell the life of one message: its session, all that happened to it, its primary's ups and downs, where it is now
    #[arg(long, value_name = "ID", conflicts_with_all = ["follow", "ids", "to", "from", "routes", "since", "until", "texts"])]
    pub(crate) around: Option<TransactionId>,
    /// Only what belongs to this transaction; repeat for more
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<TransactionId>,
    /// Only what has this recipient: an address, or a part of one such as its domain; repeat for more
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) to: Vec<Address>,
    /// Only what has this sender: an address, a part of one, or <>; repeat for more
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub(crate) from: Vec<Address>,
    /// Only what belongs to this route; repeat for more
    #[arg(long = "route", value_name = "NAME")]
    pub(crate) routes: Vec<String>,
    /// Only what happened from then on: an age such as 90m or 3d, a day, a day and time
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) since: Option<Timestamp>,
    /// Only what happened until then
    #[arg(long, value_name = "TIME", value_parser = instant)]
    pub(crate) until: Option<Timestamp>,
    /// Only what has this text in a value, in capitals or not; repeat for more
    #[arg(long = "text", value_name = "TEXT")]
    pub(crate) texts: Vec<String>,
}

fn instant(text: &str) -> Result<Timestamp, String> {
    super::when::instant(text, crate::clock::now(), &jiff::tz::TimeZone::system())
}

impl Cli {
    /// What the configuration needs to know of the command line.
    pub(crate) fn flags(&self) -> Flags {
        let mut flags =
            Flags { config: self.global.config.clone(), data: self.global.data.clone(), ..Flags::default() };
        if let Command::Serve(serve) = &self.command {
            flags.routes.clone_from(&serve.routes);
            flags.listen.clone_from(&serve.listen);
            flags.admin.clone_from(&serve.admin);
            flags.hostname.clone_from(&serve.hostname);
        }
        flags
    }
}

/// Longer than any sentence; it stands in every line of the log that the operation leads to.
const REASON_BYTES_MAX: usize = 1_000;

fn reason(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("it must say why, in a word at least".to_owned());
    }
    if text.len() > REASON_BYTES_MAX {
        return Err(format!("it has {} bytes, and may have {REASON_BYTES_MAX}", text.len()));
    }
    Ok(text.to_owned())
}

/// SMTP's port is no default for HTTP.
fn with_port(text: &str) -> Result<HostPort, String> {
    let address: HostPort = text.parse().map_err(|why: crate::config::HostPortError| why.to_string())?;
    if text.ends_with(&format!(":{}", address.port)) { Ok(address) } else { Err("a port is missing".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    fn refused(line: &str) -> ErrorKind {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
        error.kind()
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_arguments_is_help_and_a_usage_error() {
        assert_eq!(refused("restante"), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        assert_eq!(refused("restante queue"), ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand);
        assert_eq!(parse("restante --help").expect_err("help").exit_code(), 0);
    }

    #[test]
    fn a_change_without_a_selector_is_refused() {
        const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";
        assert_eq!(refused("restante queue flush"), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused("restante queue release --reason x"), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused("restante queue release --all"), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused("restante queue release --all --reason="), ErrorKind::ValueValidation);
        for verb in ["bounce", "remove", "undo"] {
            assert_eq!(refused(&format!("restante queue {verb} --reason x")), ErrorKind::MissingRequiredArgument);
            assert_eq!(refused(&format!("restante queue {verb} --all")), ErrorKind::MissingRequiredArgument);
            assert!(parse(&format!("restante queue {verb} --all --reason x")).is_ok(), "{verb}");
        }
        assert_eq!(refused("restante queue remove --all --reason x --yes y"), ErrorKind::ValueValidation);
        assert_eq!(refused("restante queue undo --all --reason x --yes y"), ErrorKind::UnknownArgument);
        assert_eq!(refused(&format!("restante queue flush --all --id {ID}")), ErrorKind::ArgumentConflict);
        assert_eq!(refused("restante queue flush --id 12"), ErrorKind::ValueValidation);
        for line in
            ["ls", "ls --all", "ls --route a --route b", "flush --all", "flush --route a", "release --all --reason x"]
        {
            assert!(parse(&format!("restante queue {line}")).is_ok(), "{line}");
        }
        assert!(parse(&format!("restante queue flush --id {ID} --id {ID} --admin 127.0.0.1:8025")).is_ok());
    }

    #[test]
    fn a_reason_that_says_nothing_or_a_novel_is_refused() {
        let operate = |reason: &str| Cli::try_parse_from(["restante", "queue", "hold", "--all", "--reason", reason]);
        for (reason, why) in [(" \t", "must say why"), (&"x".repeat(REASON_BYTES_MAX + 1), "1001 bytes")] {
            let error = operate(reason).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(why), "{error}");
        }
        assert!(operate(&"x".repeat(REASON_BYTES_MAX)).is_ok());
    }

    #[test]
    fn help_is_a_command_too() {
        for line in ["restante help", "restante help queue", "restante queue help hold"] {
            let error = parse(line).expect_err(line);
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::DisplayHelp, 0), "{line}");
        }
    }

    #[test]
    fn the_admin_address_needs_its_port() {
        assert_eq!(refused("restante status --admin localhost"), ErrorKind::ValueValidation);
        assert_eq!(refused("restante status --admin [::1]"), ErrorKind::ValueValidation);
        assert!(parse("restante status --admin [::1]:8025").is_ok());
    }

    #[test]
    fn global_flags_stand_before_or_behind_the_command() {
        for line in ["restante --json --data d verify", "restante verify --json --data d"] {
            let cli = parse(line).unwrap();
            assert!(cli.global.json && cli.flags().data == Some("d".into()), "{line}");
        }
    }

    #[test]
    fn the_flags_of_serve_reach_the_configuration_as_typed() {
        let line = "restante serve --route a.test=[::1]:1 --route b.test=h --listen x --listen y --admin z --hostname n \
                    --config c --data d";
        let flags = parse(line).unwrap().flags();
        let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(flags.routes, all(&["a.test=[::1]:1", "b.test=h"]));
        assert_eq!(flags.listen, all(&["x", "y"]));
        assert_eq!((flags.admin.as_deref(), flags.hostname.as_deref()), (Some("z"), Some("n")));
        assert_eq!((flags.config, flags.data), (Some("c".into()), Some("d".into())));
    }

    #[test]
    fn delivery_to_a_named_server_is_asked_for() {
        assert_eq!(refused("restante recover --to 127.0.0.1:2526"), ErrorKind::MissingRequiredArgument);
        let Command::Recover(recover) = parse("restante recover --deliver --to 127.0.0.1:2526").unwrap().command else {
            panic!("recover")
        };
        assert_eq!(recover.to.unwrap().to_string(), "127.0.0.1:2526");
    }
}
