//! A snapshot on its way in, kept on disk until it is whole.
//!
//! openraft stops a group for good when installing fails, and a leader may die in the middle of a transfer. So nothing
//! is handed to it before the last chunk has arrived: chunks are written to a file without a name (it is gone when it
//! is closed, also after a crash) and read again at the pace of the installation.

use std::io;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use lontra_storage::snapshot::SnapshotData;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;

/// Chunks that have arrived so far.
pub(super) struct Spool {
    file: BufWriter<File>,
    chunks: u64,
}

impl Spool {
    /// In `directory`, which is made if need be. `unique` keeps two spools apart until they have no name.
    pub async fn create(directory: &Path, unique: &str) -> io::Result<Spool> {
        tokio::fs::create_dir_all(directory).await?;
        let path = directory.join(format!("incoming-{unique}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .await?;
        tokio::fs::remove_file(&path).await?;
        Ok(Spool {
            file: BufWriter::with_capacity(BUFFER_BYTES, file),
            chunks: 0,
        })
    }

    pub async fn push(&mut self, chunk: &[u8]) -> io::Result<()> {
        // A chunk came in a frame: its length fits.
        self.file.write_u32(chunk.len() as u32).await?;
        self.file.write_all(chunk).await?;
        self.chunks += 1;
        Ok(())
    }

    /// All chunks are here: what openraft may install.
    pub async fn finish(mut self) -> io::Result<SnapshotData> {
        self.file.flush().await?;
        let chunks = self.chunks;
        let mut file = self.file.into_inner();
        file.rewind().await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::spawn(read_all(BufReader::with_capacity(BUFFER_BYTES, file), chunks, sender));
        Ok(SnapshotData::from_chunks(receiver))
    }
}

async fn read_all(mut file: BufReader<File>, chunks: u64, sender: mpsc::Sender<io::Result<Bytes>>) {
    for _ in 0..chunks {
        let chunk = read_chunk(&mut file).await;
        let failed = chunk.is_err();
        // Fails when the installation was given up.
        if sender.send(chunk).await.is_err() || failed {
            return;
        }
    }
}

async fn read_chunk(file: &mut BufReader<File>) -> io::Result<Bytes> {
    let length = file.read_u32().await? as usize;
    let mut chunk = BytesMut::zeroed(length);
    file.read_exact(&mut chunk).await?;
    Ok(chunk.freeze())
}

const BUFFER_BYTES: usize = 256 << 10;
const CHUNKS_AHEAD: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn chunks_come_back_in_order_and_the_file_has_no_name() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(directory.path(), "1").await.unwrap();
        let chunks: Vec<Bytes> = (0..20u8).map(|n| Bytes::from(vec![n; n as usize * 1000])).collect();
        for chunk in &chunks {
            spool.push(chunk).await.unwrap();
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let mut arriving = spool.finish().await.unwrap().into_chunks();
        let mut found = Vec::new();
        while let Some(chunk) = arriving.recv().await {
            found.push(chunk.unwrap());
        }
        assert_eq!(found, chunks);
    }
}
