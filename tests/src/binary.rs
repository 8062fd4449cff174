//! Where the `shoal` binary is. `cargo test --workspace` builds it, since its own crate has tests that run it; a run of this
//! crate alone may find none or an old one, and builds it then, once.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::SystemTime,
};

/// The binary that belongs to this build: `SHOAL_TEST_BINARY` if that is set, else the one in the target directory that
/// this test was built into.
///
/// # Panics
/// Where there is none and none can be built.
pub fn shoal() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match env::var_os("SHOAL_TEST_BINARY") {
        Some(path) => path.into(),
        None => find_or_build(),
    })
}

fn find_or_build() -> PathBuf {
    // <target>/<profile>/deps/<this test>
    let test = env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let binary = profile.join(format!("shoal{}", env::consts::EXE_SUFFIX));
    match reason_to_build(&binary) {
        None => return binary,
        Some(reason) => eprintln!("{reason}: running `cargo build -p shoal` once"),
    }
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "-p", "shoal"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if let Some(target) = profile.parent() {
        cargo.arg("--target-dir").arg(target);
    }
    match profile.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => {}
        Some(name) => {
            cargo.args(["--profile", name]);
        }
    }
    let built = cargo.status();
    assert!(
        built.as_ref().is_ok_and(|status| status.success()) && binary.is_file(),
        "there is no {}, and `cargo build -p shoal` did not make it ({built:?}); build it by hand, or name one with \
         SHOAL_TEST_BINARY",
        binary.display()
    );
    binary
}

/// Why the binary cannot be used as it is: it is not there, or a source in the folder of a crate is newer. (Cargo's own list
/// of what it is made of is written by `cargo build` alone.)
fn reason_to_build(binary: &Path) -> Option<String> {
    let Some(built) = modified(binary) else { return Some(format!("there is no {}", binary.display())) };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let others = ["tests", "netsim"].map(|other| workspace.join(other));
    let crates = fs::read_dir(workspace).ok()?.flatten().map(|entry| entry.path());
    let sources = crates.filter(|path| !others.contains(path)).map(|path| path.join("src"));
    let mut open: Vec<PathBuf> = sources.filter(|src| src.is_dir()).collect();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if modified(&path) > Some(built) {
                return Some(format!("{} is older than {}", binary.display(), path.display()));
            }
        }
    }
    None
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}
