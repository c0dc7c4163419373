"""What people run, as scenarios: configurations of virtual machines of several VMMs, and which setting reaches which pages."""
