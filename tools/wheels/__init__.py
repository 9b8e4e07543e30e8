"""Wheels of moe-export and moe-export-ops for every platform, cross-compiled by zig."""
