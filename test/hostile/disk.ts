import { spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { draftsIn, example, small, traced, workplace, wrongWith } from './example.ts'
import type { Part } from './part.ts'

// Disks that are full: the earlier model stays whole, and one line says which file and why.

export const disk: Part = {
  name: 'disk full',
  about: 'no room for weights or output: the earlier model stays, one line says why',
  inputs: [24, 4],
  async run({ random, count, fail, record, skip }) {
    const { folder, text } = workplace()
    const tmpfs = join(folder, 'tmpfs')
    mkdirSync(tmpfs)
    const mount = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=640k', 'tmpfs', tmpfs], { encoding: 'utf8' })
    const mounted = mount.status === 0
    if (!mounted)
      skip(
        `a full file system: tmpfs cannot be mounted (${(mount.stderr ?? `${mount.error}`).trim()}); limits of file sizes were tried instead`,
      )
    try {
      for (let i = 0; i < count; i++) {
        const out = join(mounted ? tmpfs : folder, `out-${i}`)
        const first = await example([...small(text, out, 32), '--steps', '2'])
        const model = join(out, 'model.safetensors')
        if (first.code !== 0) {
          fail('the run before', JSON.stringify(first))
          break
        }
        const before = readFileSync(model)
        const kind = mounted ? ['tmpfs', 'limit', 'output'][i % 3] : ['limit', 'output'][i % 2]
        // From no room at all to nearly enough for the weights of the second run.
        const room = random.below(220)
        if (kind === 'tmpfs') fill(tmpfs, room * 1024)
        const shell =
          kind === 'limit' ? `ulimit -f ${room}` : kind === 'output' ? 'exec >/dev/full' : undefined
        const { code, stderr } = await example([...small(text, out, 64), '--steps', '3'], () => {}, shell)
        const input = `${kind}${kind === 'output' ? '' : ` with ${room} KiB`}`
        const lines = stderr.trim().split('\n')
        // The room may be enough: then all of it is written, and whole.
        const fitted =
          code === 0 && kind !== 'output' && wrongWith(model) === null && !readFileSync(model).equals(before)
        const why =
          code !== (fitted ? 0 : 1)
            ? `exit code ${code}`
            : traced(stderr)
              ? 'a stack trace'
              : wrongWith(model)
                ? `the model does not load: ${wrongWith(model)}`
                : kind !== 'output' && !fitted && !readFileSync(model).equals(before)
                  ? 'the earlier model has changed'
                  : !fitted &&
                      !lines.every((line) =>
                        /^tiny-transformer: .* cannot be written: .*(E[A-Z]+)/.test(line),
                      )
                    ? 'a line that does not say what and why'
                    : draftsIn(out).length > 0
                      ? `drafts are left: ${draftsIn(out)}`
                      : null
        if (why) fail(input, `${why}; ${stderr}`)
        else record(fitted ? 'survived' : 'refused')
        rmSync(join(tmpfs, 'filler'), { force: true })
        rmSync(out, { recursive: true, force: true })
      }
    } finally {
      if (mounted) spawnSync('umount', [tmpfs])
      rmSync(folder, { recursive: true, force: true })
    }
  },
}

/** Fills a file system but for so many bytes. */
function fill(folder: string, room: number): void {
  const { bavail, bsize } = statfsSync(folder)
  writeFileSync(join(folder, 'filler'), new Uint8Array(Math.max(0, bavail * bsize - room)))
}
