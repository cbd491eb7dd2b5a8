//! The drivers: clocks, sockets, processes, files. They carry out and decide nothing.
