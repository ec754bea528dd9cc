import { closeSync, ftruncateSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { example, small, traced, workplace, wrongWith } from './example.ts'
import type { Part } from './part.ts'

// Texts of 500 MB and more, made on the fly: read piece by piece in bounded memory, or refused at once.

const MEGABYTE = 10 ** 6
/** What the process may hold while it learns from 500 MB, in bytes: the text's numbers, and what Node takes by itself. */
const MOST_MEMORY = 1000 * MEGABYTE

export const texts: Part = {
  name: '500 MB of text',
  about: 'large texts: read in bounded memory, or refused at once',
  inputs: [6, 2],
  async run({ count, fail, record, skip }) {
    const { folder } = workplace()
    const file = join(folder, 'large.txt')
    const out = join(folder, 'out')
    /** A file of so many bytes: words, then zeros without end, which take no room on the disk, then what is given. */
    const make = (bytes: number, end: readonly number[] = []): void => {
      rmSync(file, { force: true })
      const fd = openSync(file, 'w')
      writeSync(fd, 'she sells sea shells by the sea shore. '.repeat(1000))
      ftruncateSync(fd, bytes)
      writeSync(fd, Uint8Array.from(end), 0, end.length, bytes - end.length)
      closeSync(fd)
    }
    const refused = async (what: string, args: readonly string[], message: RegExp): Promise<void> => {
      const { code, stderr } = await example([...args, '--steps', '1'])
      const right =
        code === 2 && message.test(stderr) && !traced(stderr) && stderr.trim().split('\n').length === 1
      if (right) record('refused')
      else fail(what, `exit code ${code}: ${stderr}`)
    }
    const cases: (() => Promise<void>)[] = [
      async () => {
        make(5000 * MEGABYTE)
        await refused('5 GB', small(file, out), /it has 5,000,000,000 bytes; texts of up to/)
      },
      async () => {
        make(500 * MEGABYTE)
        let peak = 0
        const { code, stdout, stderr } = await example([...small(file, out), '--steps', '2'], (_, child) => {
          try {
            const status = readFileSync(`/proc/${child.pid}/status`, 'utf8')
            peak = Math.max(peak, 1024 * Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0))
          } catch {
            // Ended, or no Linux.
          }
        })
        if (peak === 0) skip('the memory of the process that reads 500 MB: there is no /proc here')
        const wrong = code === 0 ? wrongWith(join(out, 'model.safetensors')) : `exit code ${code}`
        if (wrong) fail('500 MB', `${wrong}: ${stderr}`)
        else if (!stdout.includes('450,000,000 characters')) fail('500 MB', stdout)
        else if (peak > MOST_MEMORY) fail('500 MB', `took ${peak} bytes of memory`)
        else record('survived')
      },
      async () => {
        make(500 * MEGABYTE, [0x80])
        await refused('500 MB that end wrong', small(file, out), /byte 499999999 is 0x80/)
      },
      async () => {
        make(500 * MEGABYTE, [0xe6, 0x9c])
        await refused('500 MB that are cut', small(file, out), /character that begins at byte 499999998/)
      },
      () => refused('a device', small('/dev/zero', out), /it is a device/),
      () => refused('a folder', small(folder, out), /it is a folder/),
    ]
    for (const one of cases.slice(0, count)) await one()
    rmSync(folder, { recursive: true, force: true })
  },
}
