//! Outside: builds, packs, boots, and reads the console.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::guest::RESULT;
use crate::initramfs::Archive;
use crate::tools;

pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The whole of it, building included, has ten minutes in CI.
const MACHINE_DEADLINE: Duration = Duration::from_secs(480);

/// Modules that containers, networks and tests need; what they depend on comes along.
const MODULES: &[&str] = &[
    "overlay",
    "bridge",
    "br_netfilter",
    "veth",
    "tun",
    "dummy",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_chain_nat",
    "nft_masq",
    "nft_redir",
    "nft_numgen",
    "nft_hash",
    "nft_limit",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_objref",
    "nft_fib_inet",
    "nf_conntrack_netlink",
    "sch_tbf",
    "sch_netem",
    "loop",
    // Claims whose size the filesystem enforces.
    "crc32c_generic",
    "ext4",
    "quota_v2",
];

/// What is run unless packages are named.
const DEFAULT: [&str; 4] =
    ["runtime:kernel", "integration:limits", "rootfs:volumes:beyond", "rootfs:lib:quota"];

/// Programs of the host that tests call.
const TOOLS: [&str; 1] = ["/usr/sbin/mkfs.ext4"];

struct Options {
    packages: Vec<String>,
    filters: Vec<String>,
    files: Vec<(String, PathBuf)>,
    runs: Vec<String>,
    tests: bool,
}

/// Does as the crate's documentation says; the exit code is the tests'.
pub fn run(args: &[String]) -> Result<ExitCode> {
    let options = parse(args)?;
    let cache = workspace()?.join("target/vm");
    std::fs::create_dir_all(&cache)?;
    let kernel = kernel(&cache)?;
    let mut list = Vec::new();
    let mut archive = Archive::default();
    for directory in crate::guest::DIRECTORIES {
        archive.directory(directory);
    }
    archive.file("init", &std::fs::read("/proc/self/exe")?);
    if options.tests {
        for package in &options.packages {
            let what = Selection::parse(package);
            for (name, path, kind) in build(&what)? {
                archive.file(&format!("usr/bin/{name}"), &std::fs::read(path)?);
                if kind == Program::Other {
                    continue;
                }
                let filters = what.filter.iter().copied().chain(options.filters.iter().map(String::as_str));
                list.push([name.as_str()].into_iter().chain(filters).collect::<Vec<_>>().join(" "));
            }
        }
        tools::pack(&TOOLS, &mut archive)?;
    }
    for (name, path) in &options.files {
        archive.file(&format!("usr/bin/{name}"), &std::fs::read(path)?);
    }
    list.extend(options.runs);
    archive.file("run.list", list.join("\n").as_bytes());
    pack_modules(&kernel, &mut archive)?;
    let initramfs = cache.join("initramfs.cpio");
    std::fs::write(&initramfs, archive.finish())?;
    boot(&kernel.image, &initramfs)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        packages: Vec::new(),
        filters: Vec::new(),
        files: Vec::new(),
        runs: Vec::new(),
        tests: true,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().cloned().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--" => options.filters.extend(args.by_ref().cloned()),
            "--file" => {
                let value = value()?;
                let (path, name) = value.split_once('=').unwrap_or((&value, ""));
                let own = Path::new(path).file_name().ok_or("--file needs a path")?;
                let name = if name.is_empty() { &own.to_string_lossy() } else { name };
                options.files.push((name.to_string(), path.into()));
            }
            "--run" => options.runs.push(value()?),
            "--no-tests" => options.tests = false,
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}").into()),
            package => options.packages.push(package.to_string()),
        }
    }
    if options.packages.is_empty() {
        options.packages = DEFAULT.map(str::to_owned).to_vec();
    }
    Ok(options)
}

fn workspace() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.ancestors().nth(2).ok_or("no workspace")?.to_path_buf())
}

/// What a built program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Test,
    /// What the tests run.
    Other,
}

/// `PACKAGE[:TEST[:FILTER]]`; the test `lib` is the package's unit tests.
struct Selection<'a> {
    package: &'a str,
    test: Option<&'a str>,
    filter: Option<&'a str>,
}

impl Selection<'_> {
    fn parse(text: &str) -> Selection<'_> {
        let mut parts = text.splitn(3, ':');
        Selection { package: parts.next().unwrap_or(text), test: parts.next(), filter: parts.next() }
    }
}

/// The selected tests, built: name, path and kind of each program. Unit tests stay out unless they are named: most say
/// nothing about a kernel.
fn build(what: &Selection<'_>) -> Result<Vec<(String, PathBuf, Program)>> {
    let Selection { package, test, .. } = *what;
    println!("vm: build the tests of {package}");
    let cargo = std::env::var("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["test", "--no-run", "--message-format=json", "--package", package])
        .args(match test {
            Some("lib") => vec!["--lib"],
            test => vec!["--test", test.unwrap_or("*")],
        })
        .current_dir(workspace()?)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("build the tests of {package}: {}", output.status).into());
    }
    let mut programs = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        let (target, name) = (&message["target"], message["target"]["name"].as_str().unwrap_or("test"));
        match (message["executable"].as_str(), target["kind"][0].as_str()) {
            (Some(path), Some("test")) => {
                programs.push((format!("{package}-{name}"), PathBuf::from(path), Program::Test));
            }
            (Some(path), Some("lib")) => {
                programs.push((format!("{package}-lib"), PathBuf::from(path), Program::Test));
            }
            (Some(path), Some("bin")) => {
                programs.push((name.to_owned(), PathBuf::from(path), Program::Other))
            }
            _ => {}
        }
    }
    match programs.is_empty() {
        true => Err(format!("{package} has no kernel tests").into()),
        false => Ok(programs),
    }
}

struct Kernel {
    image: PathBuf,
    modules: PathBuf,
}

/// The cloud kernel's package, downloaded and unpacked once.
fn kernel(cache: &Path) -> Result<Kernel> {
    let unpacked = cache.join("kernel");
    if !unpacked.join("boot").exists() {
        let package = newest_kernel()?;
        println!("vm: download {package}");
        execute(Command::new("apt-get").args(["download", "-q", &package]).current_dir(cache))?;
        let archive = find(cache, |name| name.starts_with(&package) && name.ends_with(".deb"))?;
        execute(Command::new("dpkg-deb").arg("-x").arg(archive).arg(&unpacked))?;
    }
    let image = find(&unpacked.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    // Merged-usr packages have them below usr.
    let modules = ["lib/modules", "usr/lib/modules"].map(|p| unpacked.join(p));
    let modules = modules.into_iter().find(|p| p.exists()).ok_or("the package has no modules")?;
    Ok(Kernel { image, modules: find(&modules, |_| true)? })
}

/// The package that `linux-image-cloud-amd64` stands for.
fn newest_kernel() -> Result<String> {
    let show = Command::new("apt-cache").args(["show", "linux-image-cloud-amd64"]).output()?;
    let text = String::from_utf8(show.stdout)?;
    let found = text.lines().find_map(|line| {
        let depends = line.strip_prefix("Depends: ")?;
        depends.split([' ', ',']).find(|word| word.starts_with("linux-image-"))
    });
    let missing = "linux-image-cloud-amd64 is in no package list (apt-get update)";
    Ok(found.ok_or(missing)?.to_string())
}

fn find(directory: &Path, matches: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if matches(&entry.file_name().to_string_lossy()) {
            return Ok(entry.path());
        }
    }
    Err(format!("nothing fitting in {}", directory.display()).into())
}

fn execute(command: &mut Command) -> Result<()> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}").into()),
        Err(e) => Err(format!("{command:?}: {e}").into()),
    }
}

/// Adds the modules and the order to load them in.
fn pack_modules(kernel: &Kernel, archive: &mut Archive) -> Result<()> {
    let mut files = BTreeMap::new();
    index(&kernel.modules.join("kernel"), &mut files)?;
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        add_module(module, &files, &mut order, archive)?;
    }
    archive.file("modules/order", order.join("\n").as_bytes());
    Ok(())
}

fn index(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some((name, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(name.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

/// A module after those it depends on, which its `.modinfo` section names.
fn add_module(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<String>,
    archive: &mut Archive,
) -> Result<()> {
    let name = name.replace('-', "_");
    // Not there: built into the kernel, or not of this kernel.
    let Some(path) = files.get(&name).filter(|_| !order.contains(&name)) else {
        return Ok(());
    };
    let content = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Command::new("xz").arg("-dc").arg(path).output()?.stdout,
        Some("zst") => Command::new("zstd").arg("-dc").arg(path).output()?.stdout,
        _ => std::fs::read(path)?,
    };
    let key = b"\0depends=";
    let at = content.windows(key.len()).position(|w| w == key);
    if let Some(at) = at {
        let value = content[at + key.len()..].split(|b| *b == 0).next().unwrap_or_default();
        for dependency in String::from_utf8_lossy(value).split(',').filter(|d| !d.is_empty()) {
            add_module(dependency, files, order, archive)?;
        }
    }
    archive.file(&format!("modules/{name}"), &content);
    order.push(name);
    Ok(())
}

/// Boots, emulated. Nested KVM has been seen to hang, so it must be asked for:
/// `PODYARD_VM_ACCEL=kvm`.
fn boot(image: &Path, initramfs: &Path) -> Result<ExitCode> {
    let kvm = std::env::var("PODYARD_VM_ACCEL").is_ok_and(|a| a == "kvm");
    // Emulated processors are threads, so two are worth having.
    let (accelerator, cpu) = if kvm { ("kvm", "host") } else { ("tcg,thread=multi", "max") };
    match boot_with(accelerator, cpu, image, initramfs)? {
        Some(code) => Ok(ExitCode::from(code)),
        None => Err("the machine stopped without a result".into()),
    }
}

/// Runs the machine with its console on our output, until it says how it went.
fn boot_with(accelerator: &str, cpu: &str, image: &Path, initramfs: &Path) -> Result<Option<u8>> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-machine", "q35", "-accel", accelerator, "-cpu", cpu])
        .args(["-m", "4096", "-smp", "2", "-display", "none", "-monitor", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-nic", "none", "-nodefaults"])
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    println!("vm: boot {} ({accelerator})", image.display());
    let start = Instant::now();
    let mut machine =
        command.spawn().map_err(|e| format!("qemu-system-x86_64: {e} (apt-get install qemu-system-x86)"))?;
    let console = machine.stdout.take().ok_or("no console")?;
    let (send, receive) = std::sync::mpsc::channel();
    // The reader ends with the machine.
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(std::io::Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_string();
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let mut result = None;
    while let Some(left) = MACHINE_DEADLINE.checked_sub(start.elapsed()) {
        let Ok(line) = receive.recv_timeout(left) else {
            break;
        };
        match line.strip_prefix(RESULT) {
            Some(code) => result = code.trim().parse::<u8>().ok(),
            None => writeln!(std::io::stdout(), "{line}")?,
        }
    }
    machine.kill()?;
    machine.wait()?;
    println!("vm: {:.0} s", start.elapsed().as_secs_f32());
    Ok(result)
}
