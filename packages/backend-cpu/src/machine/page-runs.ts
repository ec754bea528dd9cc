/**
 * Which pages of a memory are taken, in runs of any length: take, release and extend are O(1).
 *
 * Free runs are kept in lists by length, 16 per doubling, with two levels of bitmaps to find the next list that is
 * not empty (the TLSF allocator of Masmano, Ripoll, Crespo and Real, 2004). A run that is longer than asked is
 * split; one that is released is joined with the free runs on both sides.
 */

/** Lists per row; a row is a power of two. Runs below 16 pages have a list for each length. */
const steps = 16
/** The number of rows of lists, enough for 2²⁰ pages. */
const rows = 18
/** How many runs of the request's own list are looked at before a longer one is split. */
const maxLooks = 16

/** The runs of pages 0 … `pages` − 1; page 0 is never given out. */
export class PageRuns {
  pages = 0
  /** Pages in free runs. */
  #free = 0
  /** The length of the taken run that starts at each page, or −length of the free run that starts or ends there. */
  #runs = new Int32Array(0)
  /** The neighbours of each free run in its list, by the run's first page; −1 for none. */
  #next = new Int32Array(0)
  #previous = new Int32Array(0)
  readonly #heads = new Int32Array(rows * steps).fill(-1)
  /** Bits of the rows that have a list that is not empty, and of the lists of each row that are not. */
  #rowBits = 0
  readonly #stepBits = new Int32Array(rows)

  constructor(pages: number) {
    this.extend(pages)
  }

  /** The length of the taken run that starts at a page; 0 if none does. */
  lengthAt(page: number): number {
    return page > 0 && page < this.pages ? Math.max(0, this.#runs[page] as number) : 0
  }

  /** How many pages are free, in runs of any length. */
  free(): number {
    return this.#free
  }

  /** The length of the longest free run. Looks at all runs of its list. */
  largest(): number {
    if (this.#rowBits === 0) return 0
    const row = 31 - Math.clz32(this.#rowBits)
    const step = 31 - Math.clz32(this.#stepBits[row] as number)
    let longest = 0
    for (let run = this.#heads[row * steps + step] as number; run >= 0; run = this.#next[run] as number)
      longest = Math.max(longest, -(this.#runs[run] as number))
    return longest
  }

  /** Takes a run of `length` pages: its first page, or −1 if no free run is that long. */
  take(length: number): number {
    // Lengths that are no 32-bit integers would wrap below.
    if (!(length >= 1 && length < this.pages)) return -1
    const page = this.#find(length)
    if (page < 0) return -1
    const found = -(this.#runs[page] as number)
    this.#remove(page, found)
    this.#runs[page + found - 1] = 0
    this.#runs[page] = length
    if (found > length) this.#insert(page + length, found - length)
    return page
  }

  /** Frees the taken run that starts at a page. */
  release(page: number): void {
    const runs = this.#runs
    let start = page
    let length = runs[page] as number
    runs[page] = 0
    const after = start + length
    const afterLength = after < this.pages ? -(runs[after] as number) : 0
    if (afterLength > 0) {
      this.#remove(after, afterLength)
      runs[after] = 0
      runs[after + afterLength - 1] = 0
      length += afterLength
    }
    const beforeLength = -(runs[start - 1] as number)
    if (beforeLength > 0) {
      start -= beforeLength
      this.#remove(start, beforeLength)
      runs[start] = 0
      runs[start + beforeLength - 1] = 0
      length += beforeLength
    }
    this.#insert(start, length)
  }

  /** The length of the free run at the very end. */
  freeAtEnd(): number {
    return Math.max(0, -(this.#runs[this.pages - 1] as number))
  }

  /** Adds free pages at the end, so that there are `pages`. */
  extend(pages: number): void {
    const old = this.pages
    const longer = (table: Int32Array<ArrayBuffer>) => {
      const copy = new Int32Array(pages)
      copy.set(table)
      return copy
    }
    this.#runs = longer(this.#runs)
    this.#next = longer(this.#next)
    this.#previous = longer(this.#previous)
    this.pages = pages
    // Page 0 counts as taken. The new pages are released as one run, which joins them with what is free before.
    const start = Math.max(1, old)
    if (old === 0) this.#runs[0] = 1
    if (pages === start) return
    this.#runs[start] = pages - start
    this.release(start)
  }

  /** A free run of at least `length` pages, or −1. */
  #find(length: number): number {
    const list = listOf(length)
    let best = -1
    let bestLength = 0x7fffffff
    let run = this.#heads[list] as number
    for (let looks = 0; run >= 0 && looks < maxLooks; looks++) {
      const found = -(this.#runs[run] as number)
      if (found >= length && found < bestLength) {
        best = run
        bestLength = found
        if (found === length) break
      }
      run = this.#next[run] as number
    }
    if (best >= 0) return best
    // Every run of a later list is long enough; the first list that is not empty has the shortest.
    let row = list >> 4
    let bits = (this.#stepBits[row] as number) & (-2 << (list & 15))
    if (bits === 0) {
      const later = this.#rowBits & (-2 << row)
      if (later === 0) return -1
      row = lowestBit(later)
      bits = this.#stepBits[row] as number
    }
    return this.#heads[row * steps + lowestBit(bits)] as number
  }

  #insert(page: number, length: number): void {
    this.#free += length
    this.#runs[page] = -length
    this.#runs[page + length - 1] = -length
    const list = listOf(length)
    const head = this.#heads[list] as number
    this.#next[page] = head
    this.#previous[page] = -1
    if (head >= 0) this.#previous[head] = page
    this.#heads[list] = page
    this.#stepBits[list >> 4] = (this.#stepBits[list >> 4] as number) | (1 << (list & 15))
    this.#rowBits |= 1 << (list >> 4)
  }

  #remove(page: number, length: number): void {
    this.#free -= length
    const list = listOf(length)
    const next = this.#next[page] as number
    const previous = this.#previous[page] as number
    if (next >= 0) this.#previous[next] = previous
    if (previous >= 0) {
      this.#next[previous] = next
      return
    }
    this.#heads[list] = next
    if (next >= 0) return
    const row = list >> 4
    const bits = (this.#stepBits[row] as number) & ~(1 << (list & 15))
    this.#stepBits[row] = bits
    if (bits === 0) this.#rowBits &= ~(1 << row)
  }
}

/** The list that a free run of `length` pages belongs to. */
function listOf(length: number): number {
  if (length < steps) return length
  const log = 31 - Math.clz32(length)
  return (log - 3) * steps + ((length >> (log - 4)) & 15)
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits)
}
