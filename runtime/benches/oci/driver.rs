//! The driver: who is there, in which order, how often.

use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{WaitOptions, wait};

use crate::bundle::{Bundles, Variant};
use crate::contender::{Contender, complaint};
use crate::report::{self, Series};

/// Rounds not counted: page caches and crun's compiled filters.
const WARM_UP: usize = 3;

/// The commands of the split variant.
const VERBS: [&str; 4] = ["create", "start", "kill", "delete"];

struct Options {
    rounds: usize,
    variants: Vec<Variant>,
    peers: Vec<(String, PathBuf)>,
    only: Option<Vec<String>>,
    v1_view: bool,
    seed: u64,
    profile: Option<PathBuf>,
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut options = Options {
        rounds: 50,
        variants: Variant::ALL.to_vec(),
        peers: Vec::new(),
        only: None,
        v1_view: true,
        seed: u64::from(std::process::id()),
        profile: None,
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        // What cargo adds.
        if arg == "--bench" {
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{arg}: {value:?} is not a number"));
        match arg.as_str() {
            "--rounds" => options.rounds = number()? as usize,
            "--seed" => options.seed = number()?,
            "--only" => options.only = Some(value.split(',').map(str::to_string).collect()),
            "--seccomp" => options.profile = Some(value.into()),
            "--view" => options.v1_view = value != "host",
            "--variants" => {
                let named = |name: &str| Variant::ALL.into_iter().find(|v| v.name() == name);
                let found = value.split(',').map(|v| named(v).ok_or_else(|| format!("no variant {v:?}")));
                options.variants = found.collect::<Result<_, _>>()?;
            }
            "--peer" => {
                let (name, path) = value.split_once('=').ok_or("--peer NAME=PATH")?;
                options.peers.push((name.to_string(), path.into()));
            }
            other => return Err(format!("unknown option {other:?}")),
        }
    }
    Ok(options)
}

/// Everything: parses, measures, prints.
pub fn run(args: &[String]) -> Result<(), String> {
    let options = options(args)?;
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: containers are made as root");
        return Ok(());
    }
    own_mounts(options.v1_view)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(|e| e.to_string())?;
    let bundles = Bundles::make(options.profile.as_deref()).map_err(|e| format!("bundles: {e}"))?;
    let contenders = contenders(&options, &bundles)?;
    let mut random = Random(options.seed | 1);
    println!("seed {}, {} rounds, {}", options.seed, options.rounds, host());
    for variant in options.variants {
        match variant {
            Variant::Split => split(&contenders, options.rounds, &bundles, &mut random),
            _ => whole(variant, &contenders, options.rounds, &bundles, &mut random),
        }
    }
    Ok(())
}

fn host() -> String {
    let name = rustix::system::uname();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("Linux {}, {cpus} CPUs, load {}", name.release().to_string_lossy(), load.trim())
}

/// A mount namespace for the run: whatever goes wrong, the host's mounts stay as they are.
fn own_mounts(v1_view: bool) -> Result<(), String> {
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| format!("unshare: {e}"))?;
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", flags).map_err(|e| format!("make / private: {e}"))?;
    let (v1, unified) = hierarchies();
    match unified {
        Some(path) if v1_view && !v1.is_empty() => {
            unmount(&path, UnmountFlags::DETACH).map_err(|e| format!("unmount {}: {e}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The v1 mount points, and cgroup2's.
fn hierarchies() -> (Vec<PathBuf>, Option<PathBuf>) {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let of = |kind: &str| {
        let lines = table.lines().filter(|line| line.split(' ').nth(2) == Some(kind));
        lines.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).collect::<Vec<_>>()
    };
    (of("cgroup"), of("cgroup2").into_iter().next())
}

/// A copy, as an installer makes it, and as the peers are. What the linker wrote lies in single pages in the page cache,
/// what is copied in large ones, which costs a tenth of a run in page faults.
fn installed(program: &Path, name: &str, bundles: &Bundles) -> Result<PathBuf, String> {
    let to = bundles.top.join(name);
    std::fs::copy(program, &to).map_err(|e| format!("copy {}: {e}", program.display()))?;
    Ok(to)
}

fn contenders(options: &Options, bundles: &Bundles) -> Result<Vec<Contender>, String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let own = installed(&own, "floor", bundles)?;
    let oci = installed(Path::new(env!("CARGO_BIN_EXE_podyard-oci")), "podyard-oci", bundles)?;
    let (v1, unified) = hierarchies();
    let needed = |h: &&PathBuf| {
        let limited = options.variants.contains(&Variant::Limits);
        let name = h.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name == "devices" || limited && ["memory", "cpu", "pids"].contains(&name.as_str())
    };
    let few = v1.iter().filter(needed).cloned().collect();
    let mut all = vec![
        // As runc and crun: a cgroup in every hierarchy. As podyard-oci: only where a limit is.
        Contender::floor("floor", &own, v1.clone(), unified.clone()),
        Contender::floor("floor, few cgroups", &own, few, unified.clone()),
        Contender::oci("podyard-oci", &oci, &bundles.top),
    ];
    let path = std::env::var("PATH").unwrap_or_default();
    for name in ["crun", "youki", "runc"] {
        let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|file| file.is_file());
        all.extend(found.map(|file| Contender::oci(name, &file, &bundles.top)));
    }
    all.extend(options.peers.iter().map(|(name, file)| Contender::oci(name, file, &bundles.top)));
    if let Some(only) = &options.only {
        all.retain(|c| only.contains(&c.name));
    }
    let works = |c: &Contender| {
        let id = "bench-check";
        let outcome = c.run(id, Variant::Plain, bundles);
        c.clean_up(id);
        if let Err(error) = &outcome {
            println!("left out: {}: {error}: {}", c.name, complaint(c, id, bundles));
            c.clean_up(id);
        }
        outcome.is_ok()
    };
    all.retain(works);
    Ok(all)
}

fn whole(variant: Variant, contenders: &[Contender], rounds: usize, bundles: &Bundles, random: &mut Random) {
    let mut series = empty(contenders);
    let begun = Instant::now();
    for round in 0..WARM_UP + rounds {
        for at in random.order(contenders.len()) {
            let id = format!("bench-{}-{at}-{round}", std::process::id());
            let outcome = contenders[at].run(&id, variant, bundles);
            record(&mut series[at], outcome, round);
            if series[at].failures > 0 {
                contenders[at].clean_up(&id);
            }
            reap_orphans();
        }
    }
    report::runs(&format!("{}, {:.0} s", variant.name(), begun.elapsed().as_secs_f64()), &series);
}

fn split(contenders: &[Contender], rounds: usize, bundles: &Bundles, random: &mut Random) {
    let runtimes: Vec<Contender> = contenders.iter().filter(|c| !c.is_floor()).cloned().collect();
    let mut rows: Vec<Vec<Series>> = empty(&runtimes)
        .iter()
        .map(|s| VERBS.map(|_| Series { name: s.name.clone(), ..Series::default() }).into())
        .collect();
    let bundle = bundles.of(Variant::Split);
    let bundle = bundle.to_string_lossy();
    for round in 0..WARM_UP + rounds {
        for at in random.order(runtimes.len()) {
            let id = format!("bench-{}-{at}-{round}", std::process::id());
            for (verb, series) in VERBS.iter().zip(&mut rows[at]) {
                let words: &[&str] = match *verb {
                    "create" => &["create", "--bundle", &bundle, &id],
                    "kill" => &["kill", &id, "KILL"],
                    verb => &[verb, &id],
                };
                let outcome = runtimes[at].command(words);
                record(series, outcome, round);
                if *verb == "kill" {
                    // The container's process is ours to reap: this is a subreaper.
                    match wait(WaitOptions::empty()) {
                        Ok(_) | Err(_) => {}
                    }
                }
            }
            if rows[at].iter().any(|series| series.failures > 0) {
                runtimes[at].clean_up(&id);
            }
            reap_orphans();
        }
    }
    report::commands(&VERBS, &rows);
}

fn empty(contenders: &[Contender]) -> Vec<Series> {
    contenders.iter().map(|c| Series { name: c.name.clone(), ..Series::default() }).collect()
}

fn record(series: &mut Series, outcome: Result<crate::contender::Sample, String>, round: usize) {
    match outcome {
        Ok(sample) if round >= WARM_UP => series.samples.push(sample),
        Ok(_) => {}
        Err(error) => {
            eprintln!("{}: {error}", series.name);
            series.failures += 1;
        }
    }
}

/// What a runtime left behind is ours now.
fn reap_orphans() {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
}

/// xorshift64: the same seed gives the same order.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn order(&mut self, len: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..len).collect();
        for i in (1..len).rev() {
            order.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
        order
    }
}
