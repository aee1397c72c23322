"""Fakes and builders that users of StarAI's parts may build their own tests on."""
