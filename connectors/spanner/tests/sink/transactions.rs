//! Transactions: tags, limits, retries, unknown outcomes.
