import { hostRandint } from 'tilegrad'

const starts = [
  'b',
  'br',
  'c',
  'd',
  'dr',
  'f',
  'g',
  'h',
  'j',
  'k',
  'l',
  'm',
  'n',
  'p',
  'r',
  's',
  'st',
  't',
  'v',
  '',
]
const vowels = ['a', 'e', 'i', 'o', 'u', 'ia', 'ea']
const ends = ['n', 'l', 'r', 's', 'th', 'la', 'na', 'ra', 'lyn', 'ton', 'bert', 'vin', '']

const pick = (list: readonly string[]): string => list[hostRandint(list.length)] ?? ''

/** Names made by rule: one to three syllables and an ending. */
export const makeNames = (count: number): string[] =>
  Array.from({ length: count }, () => {
    const syllables = Array.from({ length: 1 + hostRandint(2) }, () => pick(starts) + pick(vowels))
    return syllables.join('') + pick(ends)
  })
