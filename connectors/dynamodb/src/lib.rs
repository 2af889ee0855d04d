//! DynamoDB source, sink, leases and checkpointer for anabranch.
