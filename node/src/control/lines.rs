//! JSON lines of bounded length, read and written one at a time.

use std::io;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

/// A line is at most this many bytes: a request with tens of thousands of paths, a report with thousands of peers.
pub(super) const MAX_LINE_BYTES: usize = 4 << 20;

/// What a reader of lines takes from the socket at once: bytes of files come in between.
const READ_BYTES: usize = 128 << 10;

/// Reads lines. What was read of an unfinished line is kept here, so reading is cancel-safe.
#[derive(Debug)]
pub(super) struct LineReader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> LineReader<R> {
    pub(super) fn new(reader: R) -> Self {
        LineReader { reader: BufReader::with_capacity(READ_BYTES, reader), line: Vec::new() }
    }

    /// The reader, for what follows the lines.
    pub(super) fn into_inner(self) -> BufReader<R> {
        self.reader
    }

    /// Up to `most` of the bytes that follow the last line, as they come; empty at the end. Cancel-safe.
    pub(super) async fn raw(&mut self, most: usize) -> io::Result<Bytes> {
        let chunk = self.reader.fill_buf().await?;
        let bytes = Bytes::copy_from_slice(&chunk[..chunk.len().min(most)]);
        self.reader.consume(bytes.len());
        Ok(bytes)
    }

    /// The next line, parsed; `None` at the end. Cancel-safe.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            let chunk = self.reader.fill_buf().await?;
            if chunk.is_empty() {
                return match self.line.is_empty() {
                    true => Ok(None),
                    false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the last line is not finished")),
                };
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let taken = end.unwrap_or(chunk.len());
            if self.line.len() + taken > MAX_LINE_BYTES {
                return Err(invalid(format!("a line is longer than {MAX_LINE_BYTES} bytes")));
            }
            self.line.extend_from_slice(&chunk[..taken]);
            self.reader.consume(taken + usize::from(end.is_some()));
            if end.is_some() {
                let parsed = serde_json::from_slice(&self.line).map_err(|error| invalid(error.to_string()));
                self.line.clear();
                return parsed.map(Some);
            }
        }
    }
}

/// Writes one line. Not cancel-safe: a line may be left unfinished.
pub(super) async fn write(writer: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(|error| invalid(error.to_string()))?;
    if line.len() > MAX_LINE_BYTES {
        return Err(invalid(format!("a line of {} bytes is longer than {MAX_LINE_BYTES}", line.len())));
    }
    line.push(b'\n');
    writer.write_all(&line).await?;
    writer.flush().await
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_arrive_whole_however_they_are_cut() {
        let (mut ours, theirs) = tokio::io::duplex(3);
        let mut reader = LineReader::new(theirs);
        let writing = async {
            write(&mut ours, &"one two three").await.unwrap();
            write(&mut ours, &7).await.unwrap();
            drop(ours);
        };
        let reading = async {
            assert_eq!(reader.next::<String>().await.unwrap().unwrap(), "one two three");
            assert_eq!(reader.next::<u8>().await.unwrap(), Some(7));
            assert_eq!(reader.next::<u8>().await.unwrap(), None);
        };
        tokio::join!(writing, reading);
    }

    #[tokio::test]
    async fn endless_broken_and_unfinished_lines_are_errors() {
        let endless = vec![b'x'; MAX_LINE_BYTES + 1];
        for bytes in [&endless[..], b"{\n", b"\"half", b"\xff\xff\n"] {
            assert!(LineReader::new(bytes).next::<String>().await.is_err());
        }
    }
}
