//! The `shoal` binary: arguments in, results on standard output, talk on standard error, an exit code of its class.
//! Everything that a library user would want is in `shoal-node`.

mod allocator;
mod args;
mod demo;
mod output;
mod passphrase;
mod pipe;
mod run;
mod settings;
mod signals;
mod text;
mod view;

use std::{ffi::OsString, path::Path, process::ExitCode, time::Duration};

use clap::{CommandFactory, Parser};
use shoal_node::{
    BytePath, Class, Config, Event, Failure, Home, LimitChange, RateLimit, Request, Settings, config::Flag,
};
use tracing_subscriber::EnvFilter;

use args::{Cli, Command, Global};
use output::Output;

/// Threads that may block on the disk at once. What feeds them is bounded; this bounds the threads.
const MAX_BLOCKING_THREADS: usize = 64;
/// What still blocks at the end is waited for so long.
const LAST_GRACE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    allocator::share_arenas();
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    start_log(&cli.global);
    let mut output = Output::new(&cli.global);
    if matches!(cli.command, Command::Cat { .. }) {
        output.leave_stdout();
    }
    match run(cli, &output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.failure(&failure);
            ExitCode::from(failure.class.exit_code())
        }
    }
}

fn run(cli: Cli, output: &Output) -> Result<(), Failure> {
    match &cli.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "shoal", &mut script);
            return print(&script, output);
        }
        Command::Man => return manual(output),
        _ => {}
    }
    let home = Home::locate(cli.global.home.as_deref(), std::env::var_os("SHOAL_HOME"))?;
    let mut config = Config::load(&home.config_file(), std::env::vars_os(), &flags(&cli.global))?;
    if passphrase::may_ask() {
        config.prompt_with(passphrase::ask);
    }
    for warning in config.warnings() {
        output.talk(&format!("warning: {warning}"));
    }
    let request = match cli.command {
        Command::Config => {
            settings::print(&home, &config, output);
            return Ok(());
        }
        Command::Daemon => return block_on(config.settings(), run::daemon(&home, &config, output)),
        Command::Passphrase => {
            block_on(config.settings(), shoal_node::change_passphrase(&home, &config))?;
            let home = home.dir().display().to_string();
            view::View::new(output).event(Event::PassphraseChanged { home });
            return Ok(());
        }
        Command::Demo { path } => return block_on(config.settings(), demo::run(path, &config, output)),
        Command::Completions { .. } | Command::Man => return Ok(()),
        Command::Share { paths, ttl, read_all } => {
            let paths = paths.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
            Request::Share { paths, stay: true, ttl_seconds: ttl, read_all }
        }
        Command::Fetch { link, paths, output, stay, symlinks, cache, ttl } => {
            let dir = absolute(output.as_deref().unwrap_or(Path::new(".")))?;
            Request::Fetch { link, paths, dir, symlinks, stay, cached: cache, ttl_seconds: ttl }
        }
        Command::Cat { link, path, offset, length } => Request::Read { what: whole(link), path, offset, length },
        Command::Unshare { what, forget } => Request::Unshare { what: whole(what), forget },
        Command::Ls => Request::List,
        Command::Stat { what } => Request::Stat { what: whole(what) },
        Command::Peers => Request::Peers,
        Command::Limit { upload, download, upload_per_peer, download_per_peer } => {
            Request::Limit(LimitChange { upload, download, upload_per_peer, download_per_peer })
        }
        Command::Pin { what, time } => Request::Pin { what: whole(what), for_seconds: time },
        Command::Unpin { what } => Request::Unpin { what: whole(what) },
        Command::Verify { what, repair } => Request::Verify { what: what.map(whole), repair },
        Command::Gc => Request::Collect,
        Command::Df => Request::Space,
        Command::Id => Request::Id,
    };
    block_on(config.settings(), run::request(&home, &config, output, request))
}

/// Runs a future on a runtime of its own size, and waits a little for what still blocks at the end.
fn block_on(settings: &Settings, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.worker_threads)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_name("shoal")
        .enable_all()
        .build()
        .map_err(|error| {
            let message = format!("cannot start {} threads: {error}", settings.worker_threads);
            Failure::new(Class::Internal, message, "set worker_threads to a smaller number")
        })?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_GRACE);
    result
}

/// A path as it reads from any directory: a daemon has another one than its clients.
fn absolute(path: &Path) -> Result<BytePath, Failure> {
    std::path::absolute(path).map(BytePath).map_err(|error| {
        let message = format!("cannot make {} an absolute path: {error}", path.display());
        Failure::new(Class::Usage, message, "name a path, and run shoal in a directory that exists")
    })
}

/// A name that is a path here is made one that a daemon understands.
fn whole(what: String) -> String {
    let path = Path::new(&what);
    if what.contains('/')
        && path.exists()
        && let Ok(path) = std::path::absolute(path)
        && let Some(path) = path.to_str()
    {
        return path.to_owned();
    }
    what
}

fn flags(global: &Global) -> Vec<Flag> {
    let texts = |limit: &Option<RateLimit>| limit.iter().map(ToString::to_string).collect();
    let given: [(_, _, Vec<String>); 4] = [
        ("listen", "--listen", global.listen.clone()),
        ("bootstrap", "--bootstrap", global.bootstrap.clone()),
        ("upload_limit", "--upload-limit", texts(&global.upload_limit)),
        ("download_limit", "--download-limit", texts(&global.download_limit)),
    ];
    given
        .into_iter()
        .filter(|(_, _, values)| !values.is_empty())
        .map(|(key, flag, values)| Flag { key, flag, values })
        .collect()
}

/// What clap says of a command line that it does not take (or of `--help`, which is none either).
fn usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let json = arguments.iter().skip(1).take_while(|argument| *argument != "--").any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let text = error.to_string();
        let message: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
        let message = message.join(" ");
        let output = Output::new(&Global { json: true, quiet: true, ..Global::default() });
        let message = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
        output.failure(&Failure::new(Class::Usage, message, "see `shoal help`"));
    } else if let Err(failed) = error.print() {
        tracing::debug!(%failed, "nobody reads the usage");
    }
    match error.use_stderr() {
        true => ExitCode::from(Class::Usage.exit_code()),
        false => ExitCode::SUCCESS,
    }
}

fn manual(output: &Output) -> Result<(), Failure> {
    let mut page = Vec::new();
    let failed = |error: std::io::Error| Failure::internal(format!("cannot make the manual page: {error}"));
    clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(failed)?;
    print(&page, output)
}

fn print(bytes: &[u8], output: &Output) -> Result<(), Failure> {
    let text = std::str::from_utf8(bytes).map_err(|error| Failure::internal(error.to_string()))?;
    output.result(text.trim_end_matches('\n'));
    Ok(())
}

/// Logs to standard error: nothing by default, ours with `-v`, everything with `-vvv`, or what `SHOAL_LOG` says.
fn start_log(global: &Global) {
    const OURS: [&str; 7] =
        ["shoal", "shoal_node", "shoal_transfer", "shoal_dht", "shoal_net", "shoal_store", "shoal_content"];
    let ours = |level: &str| OURS.map(|name| format!("{name}={level}")).join(",");
    let directives = match (std::env::var("SHOAL_LOG"), global.verbose) {
        (Ok(filter), _) if !filter.is_empty() => filter,
        (_, 0) => return,
        (_, 1) => format!("warn,{}", ours("info")),
        (_, 2) => format!("info,{}", ours("debug")),
        (_, _) => format!("debug,{}", ours("trace")),
    };
    let filter = EnvFilter::try_new(&directives).unwrap_or_else(|error| {
        eprintln!("shoal: SHOAL_LOG is not a filter ({error}); one looks like shoal_transfer=debug,warn");
        EnvFilter::new("warn")
    });
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi).init();
}
