//! Files and object storage as a sink, a source and a dead-letter store for anabranch.
