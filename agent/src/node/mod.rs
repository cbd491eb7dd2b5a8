//! The node: every decision of the agent, as a pure state machine.
