//! Spanner source, sink and checkpointer for anabranch.
