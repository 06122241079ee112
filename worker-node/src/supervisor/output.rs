//! What a process writes to its stdout and stderr, in lines.

use std::os::fd::OwnedFd;

use tokio::net::unix::pipe;

/// A longer line is cut, as Python's are.
const LINE_MAX: usize = 250_000;

/// Makes a pipe: our end, and the one for the process.
pub(crate) fn pipe_for_child() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((pipe::Receiver::from_owned_fd_unchecked(read)?, write))
}

/// Calls `line` for each line until every writer is gone.
pub(crate) async fn read_lines(pipe: pipe::Receiver, mut line: impl FnMut(&str)) {
    let mut pending: Vec<u8> = Vec::new();
    // Where no line ends, so that a long one is looked through once.
    let mut seen = 0;
    loop {
        if pipe.readable().await.is_err() {
            break;
        }
        match pipe.try_read_buf(&mut pending) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => break,
        }
        let mut start = 0;
        while let Some(end) = cut(&pending[start..], seen) {
            line(text(&pending[start..start + end]).as_ref());
            start += end + usize::from(pending.get(start + end) == Some(&b'\n'));
            seen = 0;
        }
        pending.drain(..start);
        seen = pending.len();
    }
    if !pending.is_empty() {
        line(text(&pending).as_ref());
    }
}

/// Where the first line ends, if it is complete or too long; not among the bytes that were seen.
fn cut(bytes: &[u8], seen: usize) -> Option<usize> {
    match bytes.iter().skip(seen).position(|byte| *byte == b'\n').map(|at| at + seen) {
        Some(end) if end <= LINE_MAX => Some(end),
        Some(_) => Some(LINE_MAX),
        None if bytes.len() >= LINE_MAX => Some(LINE_MAX),
        None => None,
    }
}

fn text(line: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_whole_and_bounded() {
        let (read, write) = pipe_for_child().unwrap();
        let long = "x".repeat(LINE_MAX + 10);
        let sent = format!("one\r\n\ntwo\n{long}\nlast");
        let writer = std::thread::spawn(move || {
            use std::io::Write;
            std::fs::File::from(write).write_all(sent.as_bytes()).unwrap();
        });
        let mut seen = Vec::new();
        read_lines(read, |line| seen.push(line.to_owned())).await;
        writer.join().unwrap();
        assert_eq!(seen, ["one", "", "two", &long[..LINE_MAX], &long[LINE_MAX..], "last"]);
    }
}
