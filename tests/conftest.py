"""What all tests of the plugin itself share."""

pytest_plugins = ["pytester"]
