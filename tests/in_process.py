"""What a worker process is to a crew, without the seconds that a process takes to start."""

import json
import os


class InThisProcess:
    def __init__(self, worker):
        self.read, self.written = os.pipe()
        self.worker = worker

    def fileno(self):
        return self.read

    def give(self, job):
        self.said = self.worker.answer(json.loads(json.dumps(job)))
        os.write(self.written, b"!")

    def answer(self):
        os.read(self.read, 1)
        return json.loads(json.dumps(self.said))

    def kill(self):
        pass

    def end(self):
        os.close(self.read)
        os.close(self.written)
