//! Accounts, routing and balances: Prepare in, Fulfill or Reject out.
