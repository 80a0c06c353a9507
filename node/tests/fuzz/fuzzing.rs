//! Fuzzing in the process, on stable Rust: inputs that are mutated, and kept if they bring about something new.
//!
//! ```text
//!   corpus ─▶ one input ─mutate─▶ run ─▶ outcome      a new outcome: the input joins the corpus
//!      ▲                                   │
//!      └───────────────────────────────────┘
//! ```
//!
//! Without the sanitizers' coverage, what a target *answers* is the guide: it hashes which packet, which refusal, which
//! packets out. Bytes mean structure to the target (a selector, then a body whose length is put right), so mutations stay
//! near what is accepted.
//!
//! A panic, a run of more than [`TIME_MAX`], and more live memory than the target allows for an input of its length are
//! failures, and name the input. The same seed gives the same run.
//!
//! | variable | meaning |
//! |---|---|
//! | `LONTRA_FUZZ_INPUTS` | how many inputs, all targets together; 400,000 if it is not set |
//! | `LONTRA_FUZZ_SEED` | another run |
//! | `LONTRA_FUZZ_GROW` | the corpus file is written again, with one input for each outcome |

#![allow(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; it counts and hands on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// Thousandths of all inputs that each target gets.
const SHARES: &[(&str, u64)] = &[
    ("frames", 300),
    ("decoders", 250),
    ("connection", 100),
    ("topics", 120),
    ("websocket", 60),
    ("proxy", 50),
    ("config", 5),
    ("links", 115),
];

pub struct Target<'a> {
    pub name: &'static str,
    /// Hexadecimal, a line for each input.
    pub corpus: &'a Path,
    /// Where to begin besides the corpus.
    pub seeds: Vec<Vec<u8>>,
    /// Pieces that mean something there.
    pub words: &'a [&'a [u8]],
    /// Live bytes that an input may cost: this much, and as many times its length.
    pub memory: (usize, usize),
}

/// Runs the target's share of the inputs. `run` says what became of an input.
pub fn fuzz(target: Target<'_>, mut run: impl FnMut(&[u8]) -> u64) {
    assert_eq!(
        SHARES.iter().map(|share| share.1).sum::<u64>(),
        1_000,
        "the shares are all there is"
    );
    let share = SHARES
        .iter()
        .find(|share| share.0 == target.name)
        .expect("the target has a share")
        .1;
    let inputs = (variable("LONTRA_FUZZ_INPUTS").unwrap_or(INPUTS) * share).div_ceil(1_000);
    let seed = variable("LONTRA_FUZZ_SEED").unwrap_or(SEED);
    let started = Instant::now();
    let (mut corpus, mut outcomes) = (Vec::new(), HashMap::new());
    let committed = read(target.corpus);
    assert!(
        !committed.is_empty() || !target.seeds.is_empty(),
        "{}: nothing to begin with",
        target.name
    );
    for input in committed.iter().chain(&target.seeds) {
        let outcome = checked(&target, input, &mut run);
        keep(input.clone(), outcome, &mut corpus, &mut outcomes);
    }
    let mut random = Random(seed);
    for _ in 0..inputs {
        let input = mutated(&corpus, target.words, &mut random);
        let outcome = checked(&target, &input, &mut run);
        keep(input, outcome, &mut corpus, &mut outcomes);
    }
    println!(
        "{}: {inputs} inputs, seed {seed}: {} outcomes, of which {} from what was there before, in {:.0?}",
        target.name,
        outcomes.len(),
        committed.len(),
        started.elapsed()
    );
    if std::env::var_os("LONTRA_FUZZ_GROW").is_some() {
        write(target.corpus, &corpus);
    }
}

/// A new outcome joins; a shorter way to a known one replaces the longer.
fn keep(input: Vec<u8>, outcome: u64, corpus: &mut Vec<Vec<u8>>, outcomes: &mut HashMap<u64, usize>) {
    match outcomes.get(&outcome) {
        Some(at) if corpus[*at].len() > input.len() => corpus[*at] = input,
        None if corpus.len() < CORPUS_MAX => {
            outcomes.insert(outcome, corpus.len());
            corpus.push(input);
        }
        Some(_) | None => {}
    }
}

fn checked(target: &Target<'_>, input: &[u8], run: &mut impl FnMut(&[u8]) -> u64) -> u64 {
    let started = processor_time();
    let live = memory(Cell::get);
    memory_peak(|peak| peak.set(live));
    let outcome = catch_unwind(AssertUnwindSafe(|| run(input)));
    let used = (memory_peak(Cell::get) - live).max(0) as usize;
    let outcome = outcome.unwrap_or_else(|panic| {
        eprintln!("{}: panic with the input {}", target.name, to_hex(input));
        resume_unwind(panic)
    });
    let (base, factor) = target.memory;
    let allowed = base + factor * input.len();
    assert!(
        used <= allowed,
        "{}: {used} live bytes, {allowed} allowed: {}",
        target.name,
        to_hex(input)
    );
    let took = processor_time().saturating_sub(started);
    assert!(took < TIME_MAX, "{}: {took:?} with {}", target.name, to_hex(input));
    outcome
}

/// Of this thread: a machine that stands still is no loop.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

fn mutated(corpus: &[Vec<u8>], words: &[&[u8]], random: &mut Random) -> Vec<u8> {
    const TELLING: [u8; 12] = [0, 1, 2, 4, 0x10, 0x7f, 0x80, 0x81, 0xff, b'#', b'+', b'/'];
    let mut bytes = corpus[random.below(corpus.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = TELLING[random.below(TELLING.len())],
            2 if at < bytes.len() => bytes[at] = random.next() as u8,
            3 if at < bytes.len() => {
                let end = (at + 1 + random.below(4)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
            5 => bytes.truncate(at),
            6 if !words.is_empty() => {
                let word = words[random.below(words.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                let other = &corpus[random.below(corpus.len())];
                let from = random.below(other.len() + 1);
                let piece = other[from..]
                    .iter()
                    .take(1 + random.below(24))
                    .copied()
                    .collect::<Vec<_>>();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes.truncate(INPUT_BYTES_MAX);
    bytes
}

/// The hash of whatever describes an outcome.
pub fn outcome(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// xorshift64*: the same seed gives the same run.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("{name}={value}: {error}")))
}

fn read(path: &Path) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| from_hex(line, path)).collect()
}

pub fn from_hex(line: &str, path: &Path) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(line.get(at..at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..line.len()).step_by(2).map(byte).collect();
    bytes.unwrap_or_else(|| panic!("{}: no hexadecimal: {line}", path.display()))
}

fn write(path: &Path, corpus: &[Vec<u8>]) {
    let mut lines: Vec<String> = corpus
        .iter()
        .filter(|input| input.len() <= KEPT_BYTES_MAX)
        .map(|input| to_hex(input))
        .collect();
    lines.sort();
    lines.dedup();
    // Evenly over what is there, so that a small file still reaches far.
    let step = lines.len().div_ceil(KEPT_MAX).max(1);
    let lines: Vec<String> = lines.into_iter().step_by(step).collect();
    std::fs::write(path, lines.join("\n") + "\n").unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// ---- memory ----

/// Counts the live bytes of each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn memory<T>(with: impl FnOnce(&Cell<isize>) -> T) -> T {
    LIVE.with(with)
}

fn memory_peak<T>(with: impl FnOnce(&Cell<isize>) -> T) -> T {
    PEAK.with(with)
}

fn count(bytes: isize) {
    // A thread that is ending has no cells any more.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: everything is done by `System`; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// All targets together, well under a minute.
const INPUTS: u64 = 400_000;
const SEED: u64 = 0x10_7A_4A;
/// A run is microseconds; this much is no load of the machine, but a loop.
const TIME_MAX: Duration = Duration::from_secs(5);
const INPUT_BYTES_MAX: usize = 2_048;
const CORPUS_MAX: usize = 20_000;
/// What is committed: 250 inputs of at most 96 bytes are 48 KB of text.
const KEPT_MAX: usize = 250;
const KEPT_BYTES_MAX: usize = 96;
