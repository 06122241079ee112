//! Runs many seeds, or one: `simulate --seeds N [--from M]`, `simulate --seed N [--watch WORD]`.

use simulation::{Plan, run};

fn main() -> std::process::ExitCode {
    let mut from = 0;
    let mut seeds = 1_000;
    let mut watch = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--watch" {
            watch = arguments.next();
            continue;
        }
        let Some(value) = arguments.next().and_then(|text| text.parse::<u64>().ok()) else {
            eprintln!("{name} wants a number");
            return std::process::ExitCode::from(2);
        };
        match name.as_str() {
            "--seeds" => seeds = value,
            "--from" => from = value,
            "--seed" => (from, seeds) = (value, 1),
            _ => {
                eprintln!("unknown option {name}; there are --seeds N, --from N, --seed N and --watch WORD");
                return std::process::ExitCode::from(2);
            }
        }
    }
    let (mut steps, mut ran, mut direct, mut far, mut read, mut made_again) = (0, 0, 0, 0, 0, 0);
    for seed in from..from + seeds {
        match run(Plan { watch: watch.clone(), ..Plan::small(seed) }) {
            Ok(report) => {
                steps += report.steps;
                ran += report.ran;
                direct += report.direct;
                far += report.far;
                made_again += report.made_again;
                read += report.read;
            }
            Err(error) => {
                eprintln!("{error}\nreplay: scripts/simulate --seed {seed}");
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    println!(
        "{seeds} seeds: {steps} steps, {ran} attempts ran, {direct} calls went straight ({far} to other nodes), {read} values read, \
         {made_again} tasks made again what was lost, every invariant held"
    );
    std::process::ExitCode::SUCCESS
}
