import {
  closeSync,
  copyFileSync,
  existsSync,
  fsyncSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join } from 'node:path'
import { UsageError } from './usage-error.ts'

/**
 * Files that are there whole or not at all: each is written beside its place as a draft, brought to the disk, and renamed.
 * Whatever ends the program at whatever moment leaves the file that was there before, or the new one.
 */

/** A file that could not be written: shown as one line. */
export class WriteError extends Error {
  override name = 'WriteError'
}

/** What the system's error codes mean to people. */
const MEANINGS: Readonly<Record<string, string>> = {
  ENOSPC: 'no space is left on the device',
  EDQUOT: 'the disk quota is used up',
  EFBIG: 'it is larger than files may be here',
  EACCES: 'permission denied',
  EPERM: 'it is not permitted',
  EROFS: 'the file system is read-only',
  EISDIR: 'there is a folder of that name',
  ENOTDIR: 'a part of that path is a file, no folder',
  EEXIST: 'there is a file of that name, no folder',
  ENOENT: 'its folder does not exist',
  EIO: 'the device reports an error',
  EMFILE: 'too many files are open',
  ENAMETOOLONG: 'the name is too long',
  ELOOP: 'its symbolic links lead in a circle',
}

/** Why a call of the file system failed, in words. */
export function reason(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException
  const meaning = code === undefined ? undefined : MEANINGS[code]
  return meaning ? `${meaning} (${code})` : (code ?? message)
}

const draftOf = (file: string, pid: number): string => `${file}.${pid}.draft`
const DRAFT = /\.(\d+)\.draft$/

/** Brings a folder's list of names to the disk. Systems without that do it by themselves. */
function syncFolder(folder: string): void {
  let fd: number | undefined
  try {
    fd = openSync(folder, 'r')
    fsyncSync(fd)
  } catch {
    // Windows opens no folders.
  } finally {
    if (fd !== undefined) closeSync(fd)
  }
}

let isEnding = (): boolean => false

/** From now on no draft is begun where `ending` says that the process ends: nobody would take it away again. */
export function beginNothingWhen(ending: () => boolean): void {
  isEnding = ending
}

/** Waits for the process to end. */
const forever = (): unknown => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)

/**
 * Writes a file whole or not at all.
 *
 * @param before what to do when the new content is on the disk and the old is still in place.
 * @throws WriteError saying which file and why; what was there is still there.
 */
export function writeWhole(file: string, content: string | Uint8Array, before?: () => void): void {
  const draft = draftOf(file, process.pid)
  const bytes = typeof content === 'string' ? new TextEncoder().encode(content) : content
  if (isEnding()) forever()
  try {
    const fd = openSync(draft, 'w')
    try {
      // A write takes as much as there is room for; the next one says why it takes no more.
      for (let at = 0; at < bytes.length; )
        at += writeSync(fd, bytes, at, Math.min(bytes.length - at, 2 ** 30))
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    before?.()
    renameSync(draft, file)
    syncFolder(dirname(file))
  } catch (error) {
    rmSync(draft, { force: true })
    throw new WriteError(
      `${file} (${bytes.length.toLocaleString('en')} bytes) cannot be written: ${reason(error)}`,
    )
  }
}

/** Writes into a new folder for temporary files; where that fails as well, null. */
export function writeElsewhere(name: string, content: Uint8Array): string | null {
  try {
    const file = join(mkdtempSync(join(tmpdir(), 'tiny-transformer-')), name)
    writeWhole(file, content)
    return file
  } catch {
    return null
  }
}

/** Removes the drafts of a process, and those of processes that are no more. */
export function removeDrafts(folder: string, pid = process.pid): void {
  const runs = (other: number): boolean => {
    try {
      return process.kill(other, 0)
    } catch (error) {
      return (error as NodeJS.ErrnoException).code === 'EPERM'
    }
  }
  try {
    for (const name of readdirSync(folder)) {
      const [, writer] = DRAFT.exec(name) ?? []
      if (writer && (Number(writer) === pid || !runs(Number(writer))))
        rmSync(join(folder, name), { recursive: true, force: true })
    }
  } catch {
    // Not there, or not ours to tidy up.
  }
}

/** Makes a folder and those it is in. Node's own way does not end where a file system refuses names, as /proc does. */
function makeFolder(folder: string): void {
  if (existsSync(folder)) {
    if (statSync(folder).isDirectory()) return
  } else if (dirname(folder) !== folder) makeFolder(dirname(folder))
  mkdirSync(folder)
}

/** Makes a folder, and tries whether files can be written there. @throws UsageError if not. */
export function prepareFolder(folder: string): void {
  const probe = draftOf(join(folder, 'probe'), process.pid)
  try {
    makeFolder(folder)
    removeDrafts(folder)
    closeSync(openSync(probe, 'w'))
    rmSync(probe)
  } catch (error) {
    // Full disks take no name any more; that is no mistake in the name.
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC')
      throw new WriteError(`--out ${folder}: ${reason(error)}`)
    throw new UsageError(`--out ${folder}: cannot write there: ${reason(error)}`)
  }
}

/** Puts the content of `from` at `to` as well, without a copy where the file system can. */
function alsoAt(from: string, to: string): void {
  try {
    linkSync(from, to)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return
    copyFileSync(from, to)
  }
}

/**
 * Keeps files of a folder as they are now in a folder inside it, in place of what that held; files that do not exist
 * are left out.
 *
 * @returns the inner folder.
 */
export function keepIn(folder: string, inner: string, files: readonly string[]): string {
  const kept = join(folder, inner)
  const fresh = draftOf(kept, process.pid)
  rmSync(fresh, { recursive: true, force: true })
  mkdirSync(fresh)
  for (const file of files) alsoAt(join(folder, file), join(fresh, basename(file)))
  // Should this be cut here, the originals are still in place.
  rmSync(kept, { recursive: true, force: true })
  renameSync(fresh, kept)
  return kept
}
