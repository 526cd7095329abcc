//! Where the two programs are, which are built once, in the profile of the tests; and programs of others.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The programs.
#[derive(Debug)]
pub struct Programs {
    /// The daemon.
    pub balancerd: PathBuf,
    /// The control program.
    pub balancerctl: PathBuf,
}

/// The programs, built when this process first asks. `BALANCER_PROGRAMS=DIR` has them taken from there as they are.
///
/// # Panics
/// When they cannot be built.
pub fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| match std::env::var_os("BALANCER_PROGRAMS") {
        Some(directory) => in_directory(Path::new(&directory)),
        None => build_once(),
    })
}

fn in_directory(directory: &Path) -> Programs {
    let program = |name| {
        let path = std::path::absolute(directory.join(name)).expect("a path");
        assert!(path.is_file(), "{} is not there", path.display());
        path
    };
    Programs { balancerd: program("balancerd"), balancerctl: program("balancerctl") }
}

/// nextest runs each test in a process of its own: the first of a run builds, the others find its number in the file.
fn build_once() -> Programs {
    let test = std::env::current_exe().expect("this program has a path");
    let profile =
        test.ancestors().find(|path| path.ends_with("deps")).and_then(Path::parent).expect("TARGET/PROFILE/deps");
    let stamp = profile.join(".programs-of-the-tests");
    let mut options = OpenOptions::new();
    let mut stamp: File =
        options.read(true).write(true).create(true).truncate(false).open(&stamp).expect("the target directory");
    stamp.lock().expect("locked");
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_default();
    let mut built = String::new();
    stamp.read_to_string(&mut built).expect("text");
    if let [number, balancerd, balancerctl] = built.lines().collect::<Vec<_>>()[..]
        && number == run
        && !run.is_empty()
    {
        return Programs { balancerd: balancerd.into(), balancerctl: balancerctl.into() };
    }
    let programs = build(profile);
    let text = format!("{run}\n{}\n{}\n", programs.balancerd.display(), programs.balancerctl.display());
    stamp.set_len(0).and_then(|()| stamp.rewind()).and_then(|()| stamp.write_all(text.as_bytes())).expect("written");
    programs
}

fn build(profile: &Path) -> Programs {
    let name = match profile.file_name().and_then(|name| name.to_str()).expect("a profile's directory") {
        "debug" => "dev",
        name => name,
    };
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--package=balancerd",
        "--package=balancerctl",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(["--profile", name, "--target-dir"]).arg(profile.parent().expect("a target directory"));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace"));
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "{command:?} failed: {}", output.status);
    let executable = |name: &str| {
        let messages = output.stdout.split(|byte| *byte == b'\n');
        let mut messages = messages.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let path = messages.find_map(|message| {
            let its = message["target"]["name"] == name && message["target"]["kind"][0] == "bin";
            its.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        });
        path.unwrap_or_else(|| panic!("cargo built no {name}"))
    };
    Programs { balancerd: executable("balancerd"), balancerctl: executable("balancerctl") }
}

/// Programs that are not ours, or `None` when one is not installed: then the test is skipped, and says so. Where the
/// environment has `CI` they must be there.
///
/// # Panics
/// When one is missing where it must be there.
#[must_use]
pub fn installed<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    let find = |name: &str| {
        let found = places.iter().map(|place| place.join(name)).find(|program| program.is_file());
        if found.is_none() {
            println!("skipped: {name} is not installed");
            assert!(std::env::var_os("CI").is_none(), "{name} is not installed");
        }
        found
    };
    let found: Vec<PathBuf> = names.into_iter().map_while(find).collect();
    found.try_into().ok()
}

/// The library that gives a program another time than that of the machine, or `None` as with programs that are not installed.
///
/// # Panics
/// When it is missing where it must be there.
#[must_use]
pub fn fake_time() -> Option<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.is_file());
    if found.is_none() {
        println!("skipped: libfaketime is not installed");
        assert!(std::env::var_os("CI").is_none(), "libfaketime is not installed");
    }
    found
}
