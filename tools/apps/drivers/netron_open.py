"""Shows a model in Netron and prints the number of nodes that its page draws.

python netron_open.py FOLDER COMMAND...

COMMAND is given the address of the page. This file is run by the application's own Python, without
moe-export.
"""

import contextlib
import subprocess
import sys

import netron

folder, *command = sys.argv[1:]
with contextlib.redirect_stdout(sys.stderr):
    host, port = netron.start(f"{folder}/model.onnx", address=("127.0.0.1", 0), browse=False)
done = subprocess.run([*command, f"http://{host}:{port}"], check=False)
with contextlib.redirect_stdout(sys.stderr):
    netron.stop()
sys.exit(done.returncode)
