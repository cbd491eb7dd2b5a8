//! The high-availability agent: decides which node may mount the data. It holds no code yet; the mirror works without it.
