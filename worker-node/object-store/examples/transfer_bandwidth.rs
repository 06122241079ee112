//! What a pull reaches over loopback, against a plain loop of writes and reads. Run with `--release`.

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use cluster_store::SegmentId;
use cluster_store::segment::{Arena, Segment, WriteMapping};
use cluster_store::transfer::{DataServer, Key, ObjectSource, Opened, Puller, PullerConfig, ServerConfig};

const LEN: usize = 800_000_000;

struct Source(Arc<OwnedFd>);

impl ObjectSource for Source {
    fn open(&self, _key: Key) -> Opened {
        Opened::Found { fd: self.0.clone(), offset: 0, len: LEN as u64, guard: Box::new(()) }
    }
}

const ROUNDS: u8 = 11;

fn rate(start: Instant) -> f64 {
    LEN as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Other work on the machine makes single rounds differ by half.
fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn plain_loop(source: &[u8], memory: &mut [u8]) -> Result<f64, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut receiver = TcpStream::connect(listener.local_addr()?)?;
    let (mut sender, _) = listener.accept()?;
    let start = Instant::now();
    std::thread::scope(|scope| -> std::io::Result<()> {
        let sending =
            scope.spawn(move || source.chunks(1 << 20).try_for_each(|chunk| sender.write_all(chunk)));
        for chunk in memory.chunks_mut(1 << 20) {
            receiver.read_exact(chunk)?;
        }
        sending.join().unwrap_or(Ok(()))
    })?;
    Ok(rate(start))
}

fn main() -> Result<(), Box<dyn Error>> {
    let len = (LEN as u64).next_multiple_of(4096);
    let source: Vec<u8> = (0..LEN).map(|i| (i * 31) as u8).collect();
    let from = Segment::create(len)?;
    File::from(from.writer_fd().try_clone_to_owned()?).write_all_at(&source, 0)?;
    let to = Segment::create(len)?;
    let arena = Arena::new();
    arena.add_segment(SegmentId(0), WriteMapping::map(to.writer_fd())?)?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let fd = Arc::new(from.reader_fd().try_clone_to_owned()?);
    let server = DataServer::start(listener, b"token", Arc::new(Source(fd)), ServerConfig::default())?;
    let puller = Puller::start(b"token", PullerConfig::default())?;
    let peer = server.address().to_string();
    let mut warm = vec![1u8; LEN];
    let (mut pulls, mut plain) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (done, wait) = mpsc::channel();
        let arena = arena.clone();
        let start = Instant::now();
        let provide = move |len: u64| arena.alloc(len as usize).ok_or_else(|| "no room".to_owned());
        puller.pull(&peer, [round; 16], provide, move |result| {
            let _ = done.send(result);
        });
        let buf = wait.recv()?.map_err(|failure| failure.error)?;
        if round == 0 {
            println!("pull into fresh memory      {:6.2} GB/s", rate(start));
            if *buf != source[..] {
                return Err("the bytes differ".into());
            }
        } else {
            pulls.push(rate(start));
        }
        drop(buf); // Frees the range: the next round gets it back, warm.
        plain.push(plain_loop(&source, &mut warm)?);
    }
    let (pull, plain) = (median(pulls), median(plain));
    println!("pull into warm memory       {pull:6.2} GB/s (median of {ROUNDS})");
    println!("plain write and read        {plain:6.2} GB/s (median)");
    println!("ratio                       {:6.2}", pull / plain);
    Ok(())
}
