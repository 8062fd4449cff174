//! The command line: what can be typed, and its help. No behaviour.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueHint};
use clap_complete::Shell;
use shoal_node::{Class, RateLimit, period};

/// Share files and directories between machines, peer to peer.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    max_term_width = 100,
    after_help = EXAMPLE,
    after_long_help = after_long_help(),
    disable_help_subcommand = false
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLE: &str = "\
Example:
  here$  shoal share ~/photos
  there$ shoal fetch 'shoal:bafy…?name=photos&via=…' -o ~/Downloads";

/// Flags that every command takes, before or after its name.
#[derive(Debug, Default, Args)]
pub(crate) struct Global {
    /// Home directory: identity, settings, index [env: SHOAL_HOME]
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) home: Option<PathBuf>,
    /// Address to listen on, such as /ip4/0.0.0.0/udp/4001/quic-v1; may be repeated [default: all interfaces]
    #[arg(long, global = true, value_name = "MULTIADDR")]
    pub(crate) listen: Vec<String>,
    /// Peer through which to join the network, ending in `/p2p/PEER`; may be repeated
    #[arg(long, global = true, value_name = "MULTIADDR")]
    pub(crate) bootstrap: Vec<String>,
    /// Send at most this much to all peers together, such as '2 MB/s' or '20 Mbit/s' [default: none]
    #[arg(long, global = true, value_name = "RATE")]
    pub(crate) upload_limit: Option<RateLimit>,
    /// Receive at most this much from all peers together [default: none]
    #[arg(long, global = true, value_name = "RATE")]
    pub(crate) download_limit: Option<RateLimit>,
    /// Print JSON lines on standard output, each with "event"
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Log more on standard error; may be repeated (or set SHOAL_LOG to a filter)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Print results and errors only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve files or directories where they lie, and print a link to each
    #[command(after_help = "Example:\n  shoal share ~/photos report.pdf\n\n\
        Nothing is copied. Serves until Ctrl-C, or goes on in the daemon if one runs.")]
    Share {
        /// What to share
        #[arg(required = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
        paths: Vec<PathBuf>,
        /// Forget them after this time, such as 90s, 12h or 7d; the files stay
        #[arg(long, value_name = "TIME", value_parser = period)]
        ttl: Option<u64>,
        /// Read every file, even those that were shared before and show no change since
        #[arg(long)]
        read_all: bool,
    },
    /// Fetch what a link names, from everybody who has it
    #[command(after_help = "Examples:\n  shoal fetch 'shoal:bafy…?name=photos&via=…' -o ~/Downloads\n  \
        shoal fetch bafy… 2026/july.jpg\n\n\
        Lands as DIR/<name>. After an interruption, the same command goes on where it stopped.")]
    Fetch {
        /// A link, a CID (then with --bootstrap, or on a local network), or an ipfs:// URL
        link: String,
        /// Only these paths inside it
        #[arg(value_name = "PATH")]
        paths: Vec<String>,
        /// Directory to put it in [default: here]
        #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        output: Option<PathBuf>,
        /// Go on serving it until Ctrl-C
        #[arg(long)]
        stay: bool,
        /// Write symbolic links that stay inside what is fetched
        #[arg(long)]
        symlinks: bool,
        /// Keep it in the home directory only, to serve it to others, until the quota wants its space
        #[arg(long, conflicts_with_all = ["output", "symlinks"])]
        cache: bool,
        /// Forget it after this time, such as 90s, 12h or 7d; files that landed stay
        #[arg(long, value_name = "TIME", value_parser = period)]
        ttl: Option<u64>,
    },
    /// Write a file's bytes to standard output, in order, as they come and are verified
    #[command(after_help = "Examples:\n  shoal cat LINK film.mkv | mpv -\n  shoal cat LINK | tar x\n  \
        shoal cat LINK film.mkv --offset 1GiB --length 1MiB > part\n\n\
        Fetches no more ahead than it takes to go on without waiting, and stops while nobody reads. What came stays in the \
        home directory as cached content, if the quota has room for all of it. With --json, events go to standard error.")]
    Cat {
        /// A link, CID or ipfs:// URL, or what `shoal ls` calls it
        link: String,
        /// The file in it, unless it is one file
        #[arg(value_name = "PATH")]
        path: Option<String>,
        /// Begin at this byte, such as 4096, 64KiB or 1GB
        #[arg(long, value_name = "BYTES", value_parser = size, default_value = "0", hide_default_value = true)]
        offset: u64,
        /// Write so many bytes [default: up to the end]
        #[arg(long, value_name = "BYTES", value_parser = size)]
        length: Option<u64>,
    },
    /// Serve everything this home holds, resume what is unfinished, and take commands
    #[command(after_help = "Example:\n  shoal daemon\n\n\
        Runs in the foreground until Ctrl-C or SIGTERM. Other shoal commands on the same home go through it.")]
    Daemon,
    /// Stop serving a root; its files stay
    #[command(after_help = "Example:\n  shoal unshare photos")]
    Unshare {
        /// A CID (its beginning is enough), link, name or path
        #[arg(value_name = "ROOT")]
        what: String,
        /// Forget it: not listed any more, and not resumed if it is incomplete
        #[arg(long)]
        forget: bool,
    },
    /// List the roots of this home
    #[command(visible_alias = "list")]
    Ls,
    /// Show one root and what it holds
    #[command(after_help = "Example:\n  shoal stat photos")]
    Stat {
        /// A CID (its beginning is enough), link, name or path
        #[arg(value_name = "ROOT")]
        what: String,
    },
    /// List connected peers (of the daemon)
    Peers,
    /// Show the rate limits of the running node, and change those that are named
    #[command(after_help = "Examples:\n  shoal limit --upload '2 MB/s'\n  shoal limit --download none\n\n\
        Holds at once and until the node stops. Limits to begin with: `upload_limit = \"2 MB/s\"` in config.toml.")]
    Limit {
        /// Sent to all peers together: a rate such as '10 MB/s' or '80 Mbit/s', or none
        #[arg(long, value_name = "RATE")]
        upload: Option<RateLimit>,
        /// Received from all peers together
        #[arg(long, value_name = "RATE")]
        download: Option<RateLimit>,
        /// Sent to one peer
        #[arg(long, value_name = "RATE")]
        upload_per_peer: Option<RateLimit>,
        /// Received from one peer
        #[arg(long, value_name = "RATE")]
        download_per_peer: Option<RateLimit>,
    },
    /// Keep a root: it is never evicted
    #[command(after_help = "Examples:\n  shoal pin photos\n  shoal pin photos --for 30d")]
    Pin {
        /// A CID (its beginning is enough), link, name or path
        #[arg(value_name = "ROOT")]
        what: String,
        /// For this time only, such as 90s, 12h or 7d
        #[arg(long = "for", value_name = "TIME", value_parser = period)]
        time: Option<u64>,
    },
    /// Keep a root no longer
    #[command(after_help = "Example:\n  shoal unpin photos")]
    Unpin {
        /// A CID (its beginning is enough), link, name or path
        #[arg(value_name = "ROOT")]
        what: String,
    },
    /// Read a root again, or all of them, and report damaged files
    #[command(after_help = "Examples:\n  shoal verify\n  shoal verify photos --repair")]
    Verify {
        /// A CID (its beginning is enough), link, name or path [default: all roots]
        #[arg(value_name = "ROOT")]
        what: Option<String>,
        /// Fetch what is damaged from others, into the home directory; your files stay as they are
        #[arg(long)]
        repair: bool,
    },
    /// Give back the space of what nothing needs any more
    #[command(
        after_help = "Forgets roots whose time is over, evicts cached content if it takes more than its part of the \
        quota, and frees what no root needs. Your files are never touched. A daemon does this by itself."
    )]
    Gc,
    /// Show where the space of the home directory goes
    Df,
    /// Change the passphrase of an encrypted home
    #[command(after_help = "Asks for the passphrase of now and for the new one, where the environment has none in \
        SHOAL_PASSPHRASE_FILE or SHOAL_PASSPHRASE, and SHOAL_NEW_PASSPHRASE_FILE or SHOAL_NEW_PASSPHRASE.\n\n\
        Stop the daemon first. Nothing is encrypted again: a copy of store/key from before goes with the passphrase of \
        before.")]
    Passphrase,
    /// Print the peer id, and the addresses if a node runs
    Id,
    /// Print the effective settings and where each comes from
    #[command(after_long_help = crate::settings::help())]
    Config,
    /// Run five peers in this process: share, find, fetch, kill a seeder, verify
    #[command(after_help = "Example:\n  shoal demo ~/photos/july.tar")]
    Demo {
        /// What to share [default: this program itself]
        #[arg(value_name = "PATH", value_hint = ValueHint::AnyPath)]
        path: Option<PathBuf>,
    },
    /// Print a completion script
    #[command(after_help = "Example:\n  shoal completions bash > ~/.local/share/bash-completion/completions/shoal")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// A number of bytes such as `4096`, `64KiB`, `2 GB`.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("a size is a whole number, with kB, MB, GB, KiB, MiB or GiB behind it if wanted".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size begins with a whole number, as in 64KiB".to_owned())?;
    number.checked_mul(unit).ok_or("this size is out of range".to_owned())
}

fn after_long_help() -> String {
    let mut text = format!("{EXAMPLE}\n\nExit codes:\n    0  done\n");
    for class in Class::ALL {
        text.push_str(&format!("  {:>3}  {}: {}\n", class.exit_code(), class.name(), class.meaning()));
    }
    text.push_str(
        "\nSettings come from flags, then SHOAL_* variables, then config.toml in the home directory; \
         see `shoal config --help`.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_flags_stand_before_or_after_the_command() {
        for line in ["shoal --home /h --json ls", "shoal ls --home /h --json"] {
            let cli = Cli::try_parse_from(line.split(' ')).unwrap();
            assert!(cli.global.json && cli.global.home.is_some(), "{line}");
        }
        let cli = Cli::try_parse_from(["shoal", "daemon", "--listen", "a", "--listen", "b"]).unwrap();
        assert_eq!(cli.global.listen, ["a", "b"]);
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(
            ["0", "4096", "7 B", "64KiB", "2 MB", "1GiB"].map(|text| size(text).unwrap()),
            [0, 4096, 7, 65_536, 2_000_000, 1 << 30]
        );
        for bad in ["", "KiB", "1.5GB", "-1", "1k", "99999999999999999999", "99999999TiB", "1 GiB "] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        let help = Cli::command().render_long_help().to_string();
        for class in Class::ALL {
            assert!(help.contains(class.name()), "{}", class.name());
        }
    }
}
