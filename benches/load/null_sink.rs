//! A sink that takes everything and keeps nothing: what reading and ordering cost by themselves.

use anabranch::{Lane, Result, Sink, SinkInfo, SinkWriter, Unit, Written, async_trait};

/// Durable at once, and gone.
#[derive(Debug)]
pub(crate) struct NullSink;

#[async_trait]
impl Sink for NullSink {
    fn info(&self) -> SinkInfo {
        SinkInfo { name: "null", transactional: true, max_lanes: 64, schemas: true }
    }

    async fn open(&self, _lane: Lane) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(NullWriter))
    }
}

struct NullWriter;

#[async_trait]
impl SinkWriter for NullWriter {
    async fn write(&mut self, unit: &Unit) -> Result<Written> {
        Ok(if unit.part.ends() { Written::durable() } else { Written::accepted() })
    }

    async fn flush(&mut self) -> Result<()> {
        Ok(())
    }

    async fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
