"""Tests of kpx.netfilter."""
