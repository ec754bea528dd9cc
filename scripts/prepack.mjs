// Builds everything before a package is packed, so that no tarball holds what is older than its sources. TILEGRAD_BUILT
// says that it was just done.
import { spawnSync } from 'node:child_process'
import { root } from './setup.mjs'

if (!process.env.TILEGRAD_BUILT) {
  // What npm pack prints is for programs: a build may only add to errors.
  const { status } = spawnSync('npm', ['run', '--silent', 'build'], {
    cwd: root,
    stdio: ['ignore', 2, 2],
    shell: process.platform === 'win32',
  })
  process.exitCode = status ?? 1
}
