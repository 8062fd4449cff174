//! What went wrong, as people and programs see it: a class (with its exit code), a sentence, and what to do about it.
//!
//! The rooms below have errors of their own, by operation and blame; this is the one form they all take on their way to
//! a terminal or over the control socket. Nothing is decided here but the class.

use serde::{Deserialize, Serialize};

/// The class of a failure. Each has an exit code of its own, and both are part of the interface: they do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// A fault of Shoal itself.
    Internal,
    /// The command line or the request does not make sense.
    Usage,
    /// A path, or a root named to `stat`, `pin`, … is not there.
    NotFound,
    /// Nobody who has the content was found, or those found stopped answering.
    NoProvider,
    /// A link or content identifier cannot be read.
    BadLink,
    /// The network of this machine: a port in use, an address that is not ours.
    Network,
    /// The disk: no space, not readable, not writable.
    Disk,
    /// The destination holds something else already.
    Exists,
    /// The content: damaged, changed while it was read, or with names that cannot be kept.
    Content,
    /// The home directory: in use, of a newer format, or its settings cannot be read.
    Home,
    /// Stopped by a signal or by the caller.
    Interrupted,
}

impl Class {
    /// All classes, in the order of their exit codes.
    pub const ALL: [Class; 11] = [
        Class::Internal,
        Class::Usage,
        Class::NotFound,
        Class::NoProvider,
        Class::BadLink,
        Class::Network,
        Class::Disk,
        Class::Exists,
        Class::Content,
        Class::Home,
        Class::Interrupted,
    ];

    /// The exit code of a process that fails for this. Success is 0.
    pub const fn exit_code(self) -> u8 {
        match self {
            Class::Internal => 1,
            Class::Usage => 2,
            Class::NotFound => 3,
            Class::NoProvider => 4,
            Class::BadLink => 5,
            Class::Network => 6,
            Class::Disk => 7,
            Class::Exists => 8,
            Class::Content => 9,
            Class::Home => 10,
            Class::Interrupted => 130,
        }
    }

    /// The word for it in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Internal => "internal",
            Class::Usage => "usage",
            Class::NotFound => "not-found",
            Class::NoProvider => "no-provider",
            Class::BadLink => "bad-link",
            Class::Network => "network",
            Class::Disk => "disk",
            Class::Exists => "exists",
            Class::Content => "content",
            Class::Home => "home",
            Class::Interrupted => "interrupted",
        }
    }

    /// What it stands for, in a few words.
    pub const fn meaning(self) -> &'static str {
        match self {
            Class::Internal => "a fault of shoal itself",
            Class::Usage => "the command line does not make sense",
            Class::NotFound => "a path or a root is not there",
            Class::NoProvider => "nobody who has the content was found, or they stopped answering",
            Class::BadLink => "a link or CID cannot be read",
            Class::Network => "this machine's network: port in use, address not ours",
            Class::Disk => "the disk: no space, not readable, not writable",
            Class::Exists => "the destination holds something else already",
            Class::Content => "the content is damaged, changed meanwhile, or has names that cannot be kept",
            Class::Home => "the home directory is in use, of a newer format, or misconfigured",
            Class::Interrupted => "interrupted; the same command again goes on where it stopped",
        }
    }
}

/// A failure: what and where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", hint.as_deref().map(|hint| format!("; {hint}")).unwrap_or_default())]
pub struct Failure {
    /// Its class.
    pub class: Class,
    /// What and where, without a full stop.
    pub message: String,
    /// What to do next, if there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    /// A failure from its parts.
    pub fn new(class: Class, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Failure { class, message: message.into(), hint: Some(hint.into()) }
    }

    /// A failure from an error of a room below. Those are sentences of the form "what and where; what to do next".
    pub fn from_error(class: Class, error: &dyn std::error::Error) -> Self {
        let text = error.to_string();
        match text.rsplit_once("; ") {
            Some((message, hint)) => Self::new(class, message, hint),
            None => Failure { class, message: text, hint: None },
        }
    }

    /// The same with this hint, where it has none.
    pub fn or_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Stopped by the user, who may go on later.
    pub fn interrupted() -> Self {
        Self::new(Class::Interrupted, "interrupted", "run the same command again to go on where it stopped")
    }

    /// A fault of our own.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Class::Internal, message, "this is a fault of shoal; please report it with the output of -vv")
    }

    /// An IO error on a path: a missing path is [`Class::NotFound`], anything else [`Class::Disk`].
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        let (class, hint) = match error.kind() {
            std::io::ErrorKind::NotFound => (Class::NotFound, "check the path"),
            std::io::ErrorKind::PermissionDenied => (Class::Disk, "check its owner and permissions"),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                (Class::Disk, "free some space, then run the same command again")
            }
            _ => (Class::Disk, "check the disk, then try again"),
        };
        Self::new(class, format!("cannot {action} {}: {error}", path.display()), hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct_and_names_are_those_of_json() {
        let mut codes: Vec<u8> = Class::ALL.iter().map(|class| class.exit_code()).collect();
        codes.dedup();
        assert_eq!(codes.len(), Class::ALL.len());
        for class in Class::ALL {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }

    #[test]
    fn a_sentence_with_advice_is_taken_apart() {
        let error = std::io::Error::other("no room in /x; free some space");
        let failure = Failure::from_error(Class::Disk, &error);
        assert_eq!((failure.message.as_str(), failure.hint.as_deref()), ("no room in /x", Some("free some space")));
        assert_eq!(failure.to_string(), "no room in /x; free some space");
    }
}
