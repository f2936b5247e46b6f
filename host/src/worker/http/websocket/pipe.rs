//! The memory that tungstenite takes for a stream.

use std::io::{self, Read, Write};

use bytes::{Buf, BytesMut};

/// Between tungstenite and the connection.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) input: BytesMut,
    pub(super) output: BytesMut,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.input.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = self.input.len().min(buffer.len());
        self.input.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
